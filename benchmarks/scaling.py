"""The measured half of docs/scaling.md: a shard of each tier, a search across actors, values by block.

    python -m benchmarks.scaling shards [--sizes N,...] [--tiers NAME,...]
    python -m benchmarks.scaling cluster
    python -m benchmarks.scaling blocks

One line of JSON for each measurement. One thread; times are medians of processor seconds, except across
actors, where they are on the clock.
"""

# ruff: noqa: E402 (thread counts are read when numpy and FAISS load)

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np

from valuegraph import FitConfig, RewardModel, read_episodes
from valuegraph.adjacency import CSR
from valuegraph.block_propagation import Block, Cut, cut, exchange, propagate_blocks
from valuegraph.graph import ValueGraph
from valuegraph.index import make_index
from valuegraph.propagation import first_hit, max_product, transition_probabilities
from valuegraph.ray_workers import connect
from valuegraph.sharded_index import Shard, ShardedIndex
from valuegraph.vectors import ExactIndex

K, QUERIES = 16, 64
DIM, STAGES, VARIANTS, NOISE = 384, 16, 20, 0.5
WIDTH = ValueGraph(DIM, FitConfig().z_dim, FitConfig(device="cpu")).width


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def keys(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Keys of memories as a fitted graph has them, and of new steps: goals of 16 stages, each seen about 20
    times, at a cosine of .8 to one another."""
    config = FitConfig(device="cpu")
    graph, rng = ValueGraph(DIM, config.z_dim, config), np.random.default_rng(seed)
    goals = unit(rng.normal(size=(max(1, count // (STAGES * VARIANTS)), DIM)))
    stages, roles = (unit(rng.normal(size=(len(goals) * STAGES, width))) for width in (DIM, config.z_dim))

    def seen(n: int) -> np.ndarray:
        which = rng.integers(0, len(stages), n)
        out = np.empty((n, WIDTH), np.float32)
        for start in range(0, n, 50_000):
            part = which[start : start + 50_000]
            phi, z = (
                unit(own[part] + NOISE / np.sqrt(own.shape[1]) * rng.normal(size=(len(part), own.shape[1])))
                for own in (stages, roles)
            )
            out[start : start + 50_000] = graph.keys(z, phi, goals[part // STAGES])
        return out

    return seen(count), seen(QUERIES)


# --- one shard ---------------------------------------------------------------------------------------------


def bench_shard(size: int, tier: str) -> dict[str, Any]:
    points, queries = keys(size)
    oracle = ExactIndex(WIDTH)
    oracle._state = points, np.arange(size)
    expected = oracle.search(queries, K).ids
    shard, start = Shard(0, 1, WIDTH, tier), time.process_time()
    shard.add(points, np.arange(size), np.arange(size))
    built = time.process_time() - start
    del points, oracle
    found = shard.search(queries, K).ids
    one = [processor(lambda i=i: shard.search(queries[i : i + 1], K)) for i in range(QUERIES)]  # type: ignore[misc]
    batch = [processor(lambda: shard.search(queries, K)) for _ in range(7)]
    host = shard._index._host  # type: ignore[attr-defined]
    return {
        "size": size,
        "tier": tier,
        "width": WIDTH,
        "build_us_a_memory": 1e6 * built / size,
        "recall_16": np.mean(
            [len(set(a) & set(b)) / K for a, b in zip(found.tolist(), expected, strict=True)]
        ),
        "lists_read": getattr(host, "nprobe", 1) / getattr(host, "nlist", 1),
        "one_ms": 1e3 * float(np.median(one)),
        "of_64_ms": 1e3 * float(np.median(batch)) / QUERIES,
        "bytes_a_memory": resident(shard.to_bytes()) / size,
    }


def processor(job: Callable[[], Any]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def resident(kept: bytes) -> int:
    """Bytes that a process grows by when it loads a shard."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        path.write_bytes(kept)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_loaded, (str(path),))


def _loaded(path: str) -> int:
    make_index(WIDTH, tier="ivf_fp16").add(np.eye(1, WIDTH), [0])  # FAISS and its tables, before the count
    before = _resident()
    shard = Shard(0, 1, WIDTH, Path(path).read_bytes())
    gc.collect()
    assert shard.size()
    return _resident() - before


def _resident() -> int:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- across actors -----------------------------------------------------------------------------------------


def bench_cluster(shards: int = 4, size: int = 2_000, rounds: int = 200) -> dict[str, Any]:
    """What a search costs beyond the searches of its shards: small shards, so that little else is left."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read on import: all servers on 127.0.0.1
    from ray.cluster_utils import Cluster

    node = {"num_cpus": shards, "object_store_memory": 256 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
    cluster.add_node(**node)
    ray = connect(cluster.address)
    points, queries = keys(size)
    report: dict[str, Any] = {"nodes": 2, "shards": shards, "size": size}
    whole, alone = ShardedIndex(WIDTH, shards, tier="flat"), make_index(WIDTH, tier="flat", device="cpu")
    for index in (whole, alone):
        index.add(points, np.arange(size))
    for batch in (1, 64):
        for name, index in (("across", whole), ("alone", alone)):
            times = np.empty(rounds)
            for i in range(rounds):
                start = time.perf_counter()
                index.search(queries[:batch], K)
                times[i] = time.perf_counter() - start
            report[f"{name}_{batch}_ms"] = 1e3 * float(np.median(times))
    whole.close()
    csr, reward, gamma = experienced(100_000)
    start = time.perf_counter()
    solution = propagate_blocks(csr, reward, gamma, shards, tol=1e-6)
    report["propagation"] = {
        "nodes": csr.nodes,
        "seconds": time.perf_counter() - start,
        "rounds": solution.sweeps,
    }
    ray.shutdown()
    cluster.shutdown()
    return report


# --- values by block ---------------------------------------------------------------------------------------


class Here:
    """Blocks in this process, one after another, and the time of the slowest in each round."""

    def __init__(self, parts: Cut) -> None:
        self.blocks, self.slowest = [Block(*each) for each in parts.arguments], 0.0

    def each(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        answers, seconds = [], []
        for block, own in zip(self.blocks, arguments, strict=True):
            start = time.process_time()
            answers.append(getattr(block, method)(*own))
            seconds.append(time.process_time() - start)
        self.slowest += max(seconds)
        return answers


def experienced(nodes: int) -> tuple[CSR, np.ndarray, float]:
    """Made up: ten edges a node, nine to nodes made a little later and one back to anywhere."""
    from benchmarks.store import experience

    graph = experience(nodes, 10)
    mass = (np.random.default_rng(1).random(nodes) < 1e-3) * 5.0
    reward = mass / (graph.row_sums() + mass + 1.0)
    return transition_probabilities(graph, 1.0, mass), reward, 0.97


def remembered() -> tuple[CSR, np.ndarray, float]:
    """The graph that a fit on the packaged text games leaves."""
    import valuegraph

    path = Path(valuegraph.__file__).parent / "data" / "textworld_train.jsonl.gz"
    config = FitConfig(epochs=2, device="cpu")
    graph = RewardModel.fit(read_episodes(path), config=config, progress=False).graph
    away = graph.column("ended") + graph.column("gone")
    moves = transition_probabilities(graph.edges.snapshot(), config.unseen, away)
    return moves, graph._own.rows.copy(), config.gamma


def bench_blocks(name: str, graph: tuple[CSR, np.ndarray, float], blocks: int, best: bool) -> dict[str, Any]:
    csr, reward, gamma = graph
    start = time.process_time()
    expected = (
        max_product(csr, reward, gamma).values if best else first_hit(csr, reward, gamma, tol=1e-6).values
    )
    single = time.process_time() - start
    parts = cut(csr, reward, gamma, blocks, best=best, tol=1e-6)
    workers = Here(parts)
    solution = exchange(workers, parts, 1e-6)  # type: ignore[arg-type]
    return {
        "graph": name,
        "nodes": csr.nodes,
        "edges": len(csr),
        "blocks": blocks,
        "best": best,
        "boundary": len(parts.read) / csr.nodes,
        "rounds": solution.sweeps,
        "numbers_sent": sum(map(len, parts.places)) * solution.sweeps,
        "difference": float(np.abs(solution.values - expected).max()),
        "slowest_blocks_s": workers.slowest,
        "single_s": single,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("shards", "cluster", "blocks"))
    parser.add_argument("--sizes", default="65536,262144")
    parser.add_argument("--tiers", default="flat,flat_fp16,ivf_fp16,ivf_sq8,ivf_pq")
    arguments = parser.parse_args()

    def show(row: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    if arguments.what == "shards":
        for size in map(int, arguments.sizes.split(",")):
            for tier in arguments.tiers.split(","):
                show(bench_shard(size, tier))
    elif arguments.what == "cluster":
        show(bench_cluster())
    else:
        graphs = {"text games": remembered(), "made up": experienced(1_000_000)}
        for name, graph in graphs.items():
            graph[0].row_sums()
            first_hit(*graph)
            for blocks in (2, 8, 32):
                for best in (False, True):
                    show(bench_blocks(name, graph, blocks, best))


if __name__ == "__main__":
    main()
