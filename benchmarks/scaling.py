"""The measured half of docs/scaling.md: a shard of each tier. What several do together: `benchmarks.cluster`.

    python -m benchmarks.scaling [--sizes N,...] [--tiers NAME,...]

One line of JSON for each measurement. One thread; times are medians of processor seconds.
"""

# ruff: noqa: E402 (thread counts are read when numpy and FAISS load)

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np

from valuegraph import FitConfig
from valuegraph.graph import ValueGraph
from valuegraph.index import make_index
from valuegraph.sharded_index import Shard
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="65536,262144")
    parser.add_argument("--tiers", default="flat,flat_fp16,ivf_fp16,ivf_sq8,ivf_pq")
    arguments = parser.parse_args()
    for size, tier in itertools.product(map(int, arguments.sizes.split(",")), arguments.tiers.split(",")):
        print(json.dumps(bench_shard(size, tier)), flush=True)


if __name__ == "__main__":
    main()
