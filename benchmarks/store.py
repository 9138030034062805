"""The store: search against raw FAISS and other engines, edges, and values on a graph of millions.

    python -m benchmarks.store [index] [alone] [million] [graph] [--small] [--json]

Everything runs on one thread, in turns with what it is compared with, so that a machine that others use slows
both alike; times are medians of processor seconds, and ratios are ours against theirs (below one: ours is
faster). Engines that are not installed are left out. At a million vectors all are, since building them takes
too long on one thread, and in `alone`, since a search of microseconds also pays for caches that others swept.
`benchmarks.store_model` times updates and scores, `benchmarks.store_rivals` writes.
"""

# ruff: noqa: E402 (thread counts are read when numpy and FAISS load)

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np
from numba import njit

from benchmarks.store_rivals import K, searches, vectors
from valuegraph.adjacency import CSR, LinkedEdges
from valuegraph.edges import EdgeTable
from valuegraph.index import FaissIndex, measure_recall
from valuegraph.propagation import (
    first_hit,
    max_product,
    raise_values,
    sweep_values,
    transition_probabilities,
)
from valuegraph.vectors import ExactIndex


def timed(*jobs: Callable[[], Any], rounds: int = 7) -> list[float]:
    """Median processor seconds of each job, run in turns; each time once before, since the others have swept
    the caches. The order changes, for it matters who comes after the one that sweeps most."""
    seconds, lots = np.empty((rounds, len(jobs))), np.random.default_rng(0)
    for row in seconds:
        for i in lots.permutation(len(jobs)).tolist():
            jobs[i]()
            start = time.process_time()
            jobs[i]()
            row[i] = time.process_time() - start
    return np.median(seconds, axis=0).tolist()


def microseconds(job: Callable[[Any], Any], arguments: list[Any]) -> np.ndarray:
    """Time on the clock of each call."""
    times = np.empty(len(arguments))
    for i, argument in enumerate(arguments):
        start = time.perf_counter()
        job(argument)
        times[i] = time.perf_counter() - start
    return times * 1e6


# --- index -------------------------------------------------------------------------------------------------


def bench_index(size: int, tiers: Sequence[str], rivals: bool) -> dict[str, Any]:
    dim = 384
    points, queries = vectors(size, dim, 64)
    oracle = ExactIndex(dim)
    oracle.add(points, np.arange(size))
    report: dict[str, Any] = {"size": size, "dim": dim, "k": K}
    others = searches(points, queries, oracle.search(queries, K).ids) if rivals else {}
    report |= {name: {"recall": found, "build_s": seconds} for name, (_, found, seconds) in others.items()}
    for tier in tiers:
        start = time.process_time()
        index = FaissIndex(dim, tier)
        index.add(points, np.arange(size))
        row = {
            "build_s": time.process_time() - start,
            "recall": measure_recall(index, queries, K, oracle=oracle),
            "bytes_per_vector": (len(index.to_bytes()) + index.ids_nbytes) / size,
        }
        for batch in (1, 64):
            asked = queries[:batch]
            names = ["raw FAISS", *others]
            jobs: list[Callable[[], Any]] = [
                lambda index=index, asked=asked: index.search(asked, K),
                lambda index=index, asked=asked: index._host.search(asked, K),
                *(lambda search=search, asked=asked: search(asked) for search, _, _ in others.values()),
            ]
            times = timed(*jobs, rounds=101 if batch == 1 else 15)
            row[f"batch_{batch}_ms"] = 1e3 * times[0]
            for name, seconds in zip(names, times[1:], strict=True):
                row[f"batch_{batch}_ratio_to_{name}"] = times[0] / seconds
        fresh = list(range(size, size + 500))
        row["add_one_us"] = float(
            np.median(microseconds(lambda i, index=index: index.add(points[:1], [i]), fresh))
        )
        report[tier] = row
    return report


# --- graph -------------------------------------------------------------------------------------------------


def experience(nodes: int, degree: int) -> CSR:
    """What episodes leave behind: mostly steps to nodes made a little later, one in ten back to anywhere."""
    rng = np.random.default_rng(0)
    tails = np.repeat(np.arange(nodes), degree)
    heads = np.minimum(tails + rng.geometric(0.02, len(tails)), nodes - 1)
    back = rng.random(len(tails)) < 0.1
    heads[back] = rng.integers(0, nodes, back.sum())
    return CSR(np.arange(0, len(tails) + 1, degree), heads, rng.integers(1, 20, len(tails)))


@njit
def plain_max_product(indptr, indices, weights, gamma, values):  # type: ignore[no-untyped-def]
    """Gauss-Seidel in reverse order, nothing else: the yardstick."""
    sweeps, changed = 0, True
    while changed:
        changed = False
        sweeps += 1
        for i in range(len(values) - 1, -1, -1):
            best = values[i]
            for e in range(indptr[i], indptr[i + 1]):
                best = max(best, gamma * weights[e] * values[indices[e]])
            if best > values[i]:
                values[i] = best
                changed = True
    return sweeps


@njit
def plain_first_hit(indptr, indices, weights, reward, gamma, tol, values):  # type: ignore[no-untyped-def]
    sweeps, residual = 0, np.inf
    while residual > tol:
        residual = 0.0
        sweeps += 1
        for i in range(len(values) - 1, -1, -1):
            total = 0.0
            for e in range(indptr[i], indptr[i + 1]):
                total += weights[e] * values[indices[e]]
            new = reward[i] + gamma * total
            residual = max(residual, abs(new - values[i]))
            values[i] = new
    return sweeps


def bench_graph(small: bool) -> dict[str, Any]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    nodes, degree, gamma, tol = (100_000 if small else 1_000_000), 10, 0.97, 1e-5
    graph = experience(nodes, degree)
    rng = np.random.default_rng(1)
    mass = (rng.random(nodes) < 1e-3) * 5.0
    transitions = transition_probabilities(graph, 1.0, mass)
    reward = mass / (graph.row_sums() + mass + 1.0)
    source = (mass > 0.0).astype(float)
    report: dict[str, Any] = {"nodes": nodes, "edges": len(graph)}

    # Every step costs -log(gamma w): the shortest way is the largest product.
    step_cost = -np.log(gamma * transitions.weights.astype(np.float64))
    cost = csr_array((step_cost, transitions.indices, transitions.indptr), shape=(nodes, nodes))
    towards = cost.T.tocsr()
    good = np.flatnonzero(source)
    ours, plain, scipy = timed(
        lambda: max_product(transitions, source, gamma),
        lambda: plain_max_product(
            transitions.indptr, transitions.indices, transitions.weights, gamma, source.copy()
        ),
        lambda: dijkstra(towards, indices=good, min_only=True),
        rounds=3,
    )
    expected = np.exp(-dijkstra(towards, indices=good, min_only=True))
    solution = max_product(transitions, source, gamma)
    np.testing.assert_allclose(solution.values, expected, rtol=1e-4, atol=1e-12)
    report["max_product"] = {
        "seconds": ours,
        "sweeps": solution.sweeps,
        "ratio_to_plain_gauss_seidel": ours / plain,
        "ratio_to_scipy_dijkstra": ours / scipy,
    }
    ours, plain = timed(
        lambda: first_hit(transitions, reward, gamma, tol=tol),
        lambda: plain_first_hit(
            transitions.indptr, transitions.indices, transitions.weights, reward, gamma, tol, np.zeros(nodes)
        ),
        rounds=3,
    )
    hits = first_hit(transitions, reward, gamma, tol=tol)
    report["first_hit"] = {
        "seconds": ours,
        "sweeps": hits.sweeps,
        "ratio_to_plain_gauss_seidel": ours / plain,
    }

    table = EdgeTable(nodes)
    start = time.process_time()
    table.upsert(graph.sources, graph.indices, graph.weights)
    inserted = time.process_time() - start
    events = rng.integers(0, len(graph), len(graph))
    tails, heads, amounts = graph.sources[events], graph.indices[events], np.ones(len(graph), np.float32)
    seconds, snapshot = timed(lambda: table.upsert(tails, heads, amounts, 0.01), table.snapshot, rounds=3)
    report["edges"] = {
        "new_per_s": len(graph) / inserted,
        "events_per_s": len(graph) / seconds,
        "snapshot_s": snapshot,
        "bytes_per_edge": table.nbytes / len(table),
    }

    # One new step between two known nodes, and the values are right again.
    current = table.snapshot()
    unit = CSR(current.indptr, current.indices, np.ones(len(current)))
    values = max_product(unit, source, gamma).values
    reward = mass / (current.row_sums() + mass + 1.0)
    hits = first_hit(transition_probabilities(current, 1.0, mass), reward, gamma, tol=tol).values
    residual = np.zeros(nodes)
    pairs = [(int(i), int(j)) for i, j in rng.integers(0, nodes, (2_000, 2))]
    touched: dict[str, list[int]] = {"raise": [], "sweep": []}

    def raise_one(links_tail: tuple[LinkedEdges, int]) -> None:
        links, tail = links_tail
        touched["raise"].append(raise_values(values, links, tail, source, gamma, unit=True) or 0)

    def sweep_one(links_tail: tuple[LinkedEdges, int]) -> None:
        links, tail = links_tail
        reward[tail] = mass[tail] / (links.out_weight[tail] + mass[tail] + 1.0)
        touched["sweep"].append(
            sweep_values(values=hits, residual=residual, links=links, dirty=tail, reward=reward, gamma=gamma,
                         kappa0=1.0, out_extra=mass, tol=tol)
        )  # fmt: skip

    raises, sweeps, upserts = [], [], []
    for tail, head in [pairs[0], *pairs]:
        upserts += microseconds(
            lambda pair: table.upsert([pair[0]], [pair[1]], [1.0]), [(tail, head)]
        ).tolist()
        links = table.links()
        raises += microseconds(raise_one, [(links, tail)]).tolist()
        sweeps += microseconds(sweep_one, [(links, tail)]).tolist()
    current = table.snapshot()
    unit = CSR(current.indptr, current.indices, np.ones(len(current)))
    np.testing.assert_allclose(values, max_product(unit, source, gamma).values, rtol=1e-9)
    for name, times in (("raise", raises), ("sweep", sweeps), ("upsert", upserts)):
        report[f"{name}_one_step_us"] = {
            "median": float(np.median(times)),
            "p99": float(np.quantile(times, 0.99)),
        }
        moved = np.array(touched.get(name, ()))
        if moved.any():
            report[f"{name}_one_step_us"] |= {
                "median_where_values_moved": float(np.median(np.array(times)[moved > 0])),
                "nodes_moved_there_mean": float(moved[moved > 0].mean()),
                "share_that_moved_values": float((moved > 0).mean()),
            }
    return report


def show(report: dict[str, Any], indent: str = "") -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            number = (
                f"{value:,.4g}"
                if isinstance(value, float)
                else f"{value:,}"
                if isinstance(value, int)
                else value
            )
            print(f"{indent}{name:42s} {number}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=["index", "alone", "million", "graph", []], default=[])
    parser.add_argument("--small", action="store_true", help="a smoke version, of index and graph")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    small = arguments.small
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "index": lambda: bench_index(5_000 if small else 100_000, ("flat", "flat_fp16", "ivf_fp16"), True),
        "alone": lambda: bench_index(5_000 if small else 100_000, ("ivf_fp16",), False),
        "million": lambda: bench_index(1_000_000, ("ivf_fp16",), False),
        "graph": lambda: bench_graph(small),
    }
    if small:
        del parts["million"]
    report = {name: parts[name]() for name in arguments.parts or parts}
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
