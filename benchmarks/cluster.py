"""Past one machine: a search across actors, and values by block until they are those of one process.

    python -m benchmarks.cluster search [--size 100000] [--rounds 30]
    python -m benchmarks.cluster blocks [--episodes FILE...] [--nodes 100000]
    python -m benchmarks.cluster actors [--episodes FILE...] [--nodes 100000]

One line of JSON for each measurement, or one list of all with --json. `search` and `actors` start a Ray
cluster of two nodes on this machine and leave none behind; their times are on the clock, medians and the
least tenth, for processors that others use too. `blocks` solves the blocks in this process, one after
another, in as many rounds and with the same numbers sent.
"""

# ruff: noqa: E402 (thread counts are read when numpy and FAISS load)

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np

import valuegraph
from valuegraph import FitConfig, RewardModel, TextEncoder, read_episodes
from valuegraph.adjacency import CSR
from valuegraph.block_propagation import Block, cut, exchange
from valuegraph.index import make_index
from valuegraph.propagation import first_hit, max_product, transition_probabilities
from valuegraph.ray_workers import Workers, connect
from valuegraph.sharded_index import Shard, ShardedIndex, merge
from valuegraph.values import own_worth

PACKAGED = Path(valuegraph.__file__).parent / "data" / "textworld_train.jsonl.gz"
DIM, K, QUERIES = 384, 16, 64


# --- across actors -----------------------------------------------------------------------------------------


@contextmanager
def two_nodes() -> Iterator[None]:
    """A cluster on this machine: each node a process group with an object store of its own, over loopback."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read on import: all servers on 127.0.0.1
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "object_store_memory": 512 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
    try:
        cluster.add_node(**node)
        ray = connect(cluster.address)
        yield
        ray.shutdown()
    finally:
        cluster.shutdown()


def bench_search(shards: int, tier: str, size: int, rounds: int) -> dict[str, Any]:
    """One index, its shards one after another in this process, and the same shards in actors: in turns."""
    from benchmarks.store_rivals import vectors

    points, queries = vectors(size, DIM, QUERIES)
    ids = np.arange(size)
    one, across = make_index(DIM, tier=tier, device="cpu"), ShardedIndex(DIM, shards, tier=tier)
    parts = [Shard(number, shards, DIM, tier) for number in range(shards)]
    for index in (one, across):
        index.add(points, ids)
    for number, part in enumerate(parts):
        own = ids[number::shards]
        part.add(points[own], own, own)
    found, expected = across.search(queries, K), merge([part.search(queries, K) for part in parts], K)
    report: dict[str, Any] = {
        "shards": shards,
        "tier": tier,
        "size": size,
        "as_the_same_shards_here": bool((found.ids == expected.ids).all()),
    }
    for batch in (1, QUERIES):
        some = queries[:batch]
        jobs: dict[str, Callable[[], Any]] = {
            "one": lambda some=some: one.search(some, K),  # type: ignore[misc]
            "here": lambda some=some: [part.search(some, K) for part in parts],  # type: ignore[misc]
            "across": lambda some=some: across.search(some, K),  # type: ignore[misc]
        }
        times = 1e3 * np.array([[on_the_clock(job) for job in jobs.values()] for _ in range(rounds)])
        for kind, level in (("median", 50), ("least_tenth", 10)):
            own = dict(zip(jobs, np.percentile(times, level, axis=0).tolist(), strict=True))
            report |= {f"batch_{batch}_{name}_{kind}_ms": took for name, took in own.items()}
            report[f"batch_{batch}_overhead_{kind}_ms"] = own["across"] - own["here"]
        for name, place in (("one", 0), ("across", 2)):
            report[f"batch_{batch}_{name}_queries_per_s"] = batch * 1e3 / np.median(times[:, place])
    across.close()
    return report


def on_the_clock(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


# --- values by block ---------------------------------------------------------------------------------------


class Here:
    """Blocks in this process, one after another, and the time of the slowest in each round."""

    def __init__(self, kind: type, arguments: list[tuple[Any, ...]]) -> None:
        self.blocks, self.slowest = [kind(*each) for each in arguments], 0.0

    def each(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        answers, seconds = [], []
        for block, own in zip(self.blocks, arguments, strict=True):
            start = time.process_time()
            answers.append(getattr(block, method)(*own))
            seconds.append(time.process_time() - start)
        self.slowest += max(seconds)
        return answers


class Far(Workers):
    """Blocks in actors, and how many bytes the rounds took there and back, pickled as Ray does it."""

    sent = 0

    def each(self, method: str, arguments: Any) -> list[Any]:
        answers = super().each(method, arguments)
        if method == "solve":
            self.sent += sum(len(pickle.dumps(part, 5)) for part in (*arguments, *answers))
        return answers


def experienced(nodes: int) -> tuple[CSR, np.ndarray, float]:
    """Made up: ten edges a node, nine to nodes made a little later and one back to anywhere."""
    from benchmarks.store import experience

    graph = experience(nodes, 10)
    mass = (np.random.default_rng(1).random(nodes) < 1e-3) * 5.0
    reward = mass / (graph.row_sums() + mass + 1.0)
    return transition_probabilities(graph, 1.0, mass), reward, 0.97


def remembered(files: list[Path], cache: Path | None) -> tuple[CSR, np.ndarray, float]:
    """The graph that a fit on recorded episodes leaves."""
    config, encoder = FitConfig(epochs=2, device="cpu"), TextEncoder(device="cpu", cache_dir=cache)
    graph = RewardModel.fit(read_episodes(*files), encoder, config, progress=False).graph
    moves = transition_probabilities(graph.edges.snapshot(), config.unseen, graph.nodes.away)
    return moves, own_worth(graph.nodes, graph.edges, config, slice(None)), config.gamma


def bench_blocks(
    name: str, graph: tuple[CSR, np.ndarray, float], blocks: int, best: bool, actors: bool = False
) -> dict[str, Any]:
    """Against one process; what travels in a round is what blocks are sent and what they answer."""
    csr, reward, gamma = graph
    start = time.process_time()
    expected = (
        max_product(csr, reward, gamma).values if best else first_hit(csr, reward, gamma, tol=1e-6).values
    )
    single = time.process_time() - start
    parts = cut(csr, reward, gamma, blocks, best=best, tol=1e-6)
    row: dict[str, Any] = {
        "graph": name,
        "nodes": csr.nodes,
        "edges": len(csr),
        "blocks": blocks,
        "best": best,
    }
    row |= {"boundary": len(parts.read) / csr.nodes, "single_s": single}
    workers: Any
    if actors:
        workers = Far(Block, parts.arguments, num_cpus=0.25)
        workers.each(
            "values", [(np.zeros(len(own)),) for own in parts.places]
        )  # compiles, and changes nothing
    else:
        workers = Here(Block, parts.arguments)
    start = time.perf_counter()
    solution = exchange(workers, parts, 1e-6)
    row |= {"rounds": solution.sweeps, "difference": float(np.abs(solution.values - expected).max())}
    if actors:
        row |= {"clock_s": time.perf_counter() - start}
        row |= {"pickled_bytes_a_round": workers.sent / solution.sweeps}
        workers.close()
    else:
        row |= {"slowest_blocks_s": workers.slowest}
        row |= {"bytes_a_round": 8 * (sum(map(len, parts.places)) + len(parts.read))}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=("search", "blocks", "actors"))
    parser.add_argument("--size", type=int, default=100_000, help="vectors to search across actors")
    parser.add_argument(
        "--actors", nargs="+", type=int, default=[2, 4], help="shards, or blocks on the cluster"
    )
    parser.add_argument("--rounds", type=int, default=30, help="of searches")
    parser.add_argument("--episodes", nargs="+", type=Path, default=[PACKAGED], help="for a recorded graph")
    parser.add_argument("--nodes", type=int, default=100_000, help="of the graph that is made up")
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for row in measurements(arguments):
        rows.append(row)
        if not arguments.json:
            print(json.dumps(row), flush=True)
    if arguments.json:
        print(json.dumps(rows))


def measurements(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if "search" in asked.what:
        with two_nodes():
            for shards, tier in itertools.product(asked.actors, ("flat", "ivf_fp16")):
                yield bench_search(shards, tier, asked.size, asked.rounds)
    if not {"blocks", "actors"} & {*asked.what}:
        return
    graphs = {"recorded": remembered(asked.episodes, asked.cache), "made up": experienced(asked.nodes)}
    for graph in graphs.values():
        graph[0].row_sums()
        first_hit(*graph)
        max_product(*graph)
    kinds = list(itertools.product(graphs, (False, True)))
    if "blocks" in asked.what:
        for blocks, (name, best) in itertools.product((2, 4, 8, 16, 32, 64), kinds):
            yield bench_blocks(name, graphs[name], blocks, best)
    if "actors" in asked.what:
        with two_nodes():
            for blocks, (name, best) in itertools.product(asked.actors, kinds):
                yield bench_blocks(name, graphs[name], blocks, best, actors=True)


if __name__ == "__main__":
    main()
