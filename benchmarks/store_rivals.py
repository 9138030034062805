"""Other stores on the same vectors: how fast they search at a recall of 95 %, and how fast they take writes.

    python -m benchmarks.store_rivals {lancedb,chroma}... [--size 100000] [--json]

`benchmarks.store` searches in turns with hnswlib, usearch and LanceDB. By itself this script measures writes,
in the engine's own process: rows one at a time, by episodes of 16 and by thousands, each call returning when
the engine says that the rows are stored. It needs numpy and the engine, nothing of ours: Chroma pins versions
of its own and wants a virtual environment to itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

K = 16
RECALL = 0.95
EFFORTS = (16, 24, 32, 48, 64, 96, 128, 256, 512)

Search = Callable[[np.ndarray], np.ndarray]
"""(n, dim) queries -> (n, K) row numbers."""


def vectors(size: int, dim: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Clustered unit vectors plus noise, and queries near some of them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(10, size // 50), dim)).astype(np.float32)
    points = centres[rng.integers(0, len(centres), size)]
    for start in range(0, size, 100_000):
        block = points[start : start + 100_000]
        block += 0.6 * rng.normal(size=block.shape).astype(np.float32)
    near = points[rng.integers(0, size, queries)] + 0.3 * rng.normal(size=(queries, dim)).astype(np.float32)
    return tuple((p / np.linalg.norm(p, axis=1, keepdims=True)).astype(np.float32) for p in (points, near))


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    )


# --- search: each at the least effort that finds 95 % of the neighbours ------------------------------------


def hnswlib(points: np.ndarray) -> tuple[Search, Callable[[int], None]]:
    from hnswlib import Index

    graph = Index(space="ip", dim=points.shape[1])
    graph.init_index(len(points), M=16, ef_construction=100)
    graph.set_num_threads(1)
    graph.add_items(points)
    return lambda queries: graph.knn_query(queries, K)[0], graph.set_ef


def usearch(points: np.ndarray) -> tuple[Search, Callable[[int], None]]:
    from usearch.index import Index

    graph = Index(ndim=points.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=100)
    graph.add(np.arange(len(points)), points, threads=1)

    def try_harder(effort: int) -> None:
        graph.expansion_search = effort

    return lambda queries: graph.search(queries, K, threads=1).keys.reshape(len(queries), -1), try_harder


def lancedb(points: np.ndarray) -> tuple[Search, Callable[[int], None]]:
    """Inverted lists over HNSW with one byte a number, LanceDB's fast index, with exact re-ranking."""
    import pyarrow as pa
    from lancedb import connect
    from lancedb.index import HnswSq

    dim, settings = points.shape[1], {"effort": 16}
    rows = pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), dim)
    data = pa.table({"id": np.arange(len(points)), "vector": rows})
    folder = tempfile.TemporaryDirectory()
    table = connect(folder.name).create_table("memories", data)
    lists = max(1, len(points) // 50_000)
    table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=lists))

    def search(queries: np.ndarray, folder: Any = folder) -> np.ndarray:
        query = table.search(queries[0] if len(queries) == 1 else list(queries), vector_column_name="vector")
        query = query.limit(K).ef(max(settings["effort"], 2 * K)).nprobes(lists).refine_factor(2)
        found = query.select(["id", "_distance"]).to_arrow()
        if len(queries) == 1:
            return found["id"].to_numpy()[None]
        order = np.lexsort((found["_distance"].to_numpy(), found["query_index"].to_numpy()))
        return found["id"].to_numpy()[order].reshape(len(queries), -1)

    return search, lambda effort: settings.update(effort=effort)


SEARCHES = {"hnswlib": hnswlib, "usearch": usearch, "lancedb": lancedb}


def searches(
    points: np.ndarray, queries: np.ndarray, truth: np.ndarray
) -> dict[str, tuple[Search, float, float]]:
    """Of each engine that is installed: its search, its recall, and processor seconds to build it."""
    ready = {}
    for name, build in SEARCHES.items():
        if importlib.util.find_spec(name):
            start = time.process_time()
            search, try_harder = build(points)
            seconds = time.process_time() - start
            for effort in EFFORTS:
                try_harder(effort)
                if (found := recall(search(queries), truth)) >= RECALL:
                    break
            ready[name] = (search, found, seconds)
    return ready


# --- writes ------------------------------------------------------------------------------------------------

Write = Callable[[list[str], np.ndarray], None]


def lancedb_writer(folder: str, points: np.ndarray) -> Write:
    from lancedb import connect

    rows = [{"id": f"old {i}", "vector": row} for i, row in enumerate(points)]
    table = connect(folder).create_table("memories", rows)
    return lambda ids, new: table.add([{"id": i, "vector": row} for i, row in zip(ids, new, strict=True)])


def chroma_writer(folder: str, points: np.ndarray) -> Write:
    import chromadb

    client = chromadb.PersistentClient(folder, chromadb.Settings(anonymized_telemetry=False))
    memories = client.create_collection("memories", metadata={"hnsw:space": "ip"})
    for start in range(0, len(points), 5_000):
        block = points[start : start + 5_000]
        memories.add(ids=[f"old {start + i}" for i in range(len(block))], embeddings=block)
    return lambda ids, new: memories.add(ids=ids, embeddings=new)


WRITERS = {"lancedb": lancedb_writer, "chroma": chroma_writer}


def write_rates(engine: str, size: int, dim: int = 384, seconds: float = 5.0) -> dict[str, float]:
    """Rows a second on the clock, by rows in a call, into a store that holds `size` of them already."""
    points, _ = vectors(size + 20_000, dim, 1)
    report, at = {}, size
    with tempfile.TemporaryDirectory() as folder:
        write = WRITERS[engine](folder, points[:size])
        for batch in (1, 16, 1000):
            written, spent = 0, 0.0
            while (spent < seconds or written < 3 * batch) and at + batch <= len(points):
                ids = [f"new {at + i}" for i in range(batch)]
                start = time.perf_counter()
                write(ids, points[at : at + batch])
                spent += time.perf_counter() - start
                written, at = written + batch, at + batch
            report[f"rows_per_s_by_{batch}"] = written / spent
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", nargs="+", choices=list(WRITERS))
    parser.add_argument("--size", type=int, default=100_000, help="rows that the store holds before")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = {engine: write_rates(engine, arguments.size) for engine in arguments.engines}
    print(json.dumps(report, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
