"""The edge table against a dictionary, and Hebb's rule against its closed forms."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valuegraph.edges import EdgeTable, hebbian_events

no_deadline = settings(deadline=None)  # the first example compiles
paths = st.lists(st.integers(0, 6), max_size=25)


def events_of(seed: int, nodes: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, nodes, count), rng.integers(0, nodes, count), rng.random(count, dtype=np.float32)


def by_hand(
    tails: np.ndarray, heads: np.ndarray, amounts: np.ndarray, eta: float
) -> dict[tuple[int, int], float]:
    weights: dict[tuple[int, int], float] = {}
    for i, j, amount in zip(tails.tolist(), heads.tolist(), amounts.tolist(), strict=True):
        weights[i, j] = (1.0 - eta) * weights.get((i, j), 0.0) + amount
    return weights


# --- events ------------------------------------------------------------------------------------------------


@given(paths)
def test_with_nothing_else_the_events_are_the_transition_counts(path: list[int]) -> None:
    tails, heads, amounts = hebbian_events(path)
    counted = Counter()
    for i, j, amount in zip(tails.tolist(), heads.tolist(), amounts.tolist(), strict=True):
        counted[i, j] += amount
    assert counted == Counter(pairwise(path))


@given(paths, st.floats(0.0, 1.0), st.floats(0.0, 3.0), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_events_are_the_double_loop(
    path: list[int], lam: float, kappa: float, max_lag: int, seed: int
) -> None:
    delta = np.random.default_rng(seed).normal(size=len(path))
    expected = [
        (path[t - lag], path[t], lam ** (lag - 1) * (1.0 + kappa * abs(delta[t])))
        for t in range(len(path))
        for lag in range(1, min(max_lag, t) + 1)
        if lam > 0.0 or lag == 1
    ]
    tails, heads, amounts = hebbian_events(path, lam, kappa, delta, max_lag)
    assert list(zip(tails.tolist(), heads.tolist(), strict=True)) == [(i, j) for i, j, _ in expected]
    np.testing.assert_allclose(amounts, [amount for *_, amount in expected], rtol=1e-6, atol=1e-37)


def test_surprise_at_the_later_visit_strengthens_the_link() -> None:
    plain = hebbian_events([0, 1, 2], kappa=2.0, delta=[0.0, 0.0, -0.5])
    assert plain.amounts.tolist() == [1.0, 2.0]


# --- the table ---------------------------------------------------------------------------------------------


@no_deadline
@given(paths)
def test_hebb_without_forgetting_trace_or_surprise_counts_transitions(path: list[int]) -> None:
    table = EdgeTable(7)
    table.upsert(*hebbian_events(path), eta=0.0)
    counts = Counter(pairwise(path))
    snapshot = table.snapshot()
    found = dict(
        zip(
            zip(snapshot.sources.tolist(), snapshot.indices.tolist(), strict=True),
            snapshot.weights,
            strict=True,
        )
    )
    assert found == counts


@no_deadline
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(0, 3_000), st.floats(0.0, 1.0))
def test_the_table_is_the_dictionary(seed: int, nodes: int, count: int, eta: float) -> None:
    """In two batches, across several times of growing."""
    tails, heads, amounts = events_of(seed, nodes, count)
    table, half = EdgeTable(nodes), count // 2
    table.upsert(tails[:half], heads[:half], amounts[:half], eta)
    table.upsert(tails[half:], heads[half:], amounts[half:], eta)
    expected = by_hand(tails, heads, amounts, eta)
    assert len(table) == len(expected)
    np.testing.assert_allclose(
        table.weights_of(tails, heads),
        [expected[pair] for pair in zip(tails, heads, strict=True)],
        rtol=1e-4,
        atol=1e-30,
    )
    assert list(zip(*(ends.tolist() for ends in table.edges()[:2]), strict=True)) == list(expected)
    snapshot = table.snapshot()
    pairs = list(zip(snapshot.sources.tolist(), snapshot.indices.tolist(), strict=True))
    assert pairs == sorted(expected)
    np.testing.assert_allclose(snapshot.weights, [expected[pair] for pair in pairs], rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(table.links().out_weight, snapshot.row_sums(), rtol=1e-4, atol=1e-4)


def test_a_million_edges_are_all_found_and_no_others() -> None:
    """Structured keys (a grid) with the table grown from nothing: no edge is lost or made up."""
    nodes, degree = 100_000, 10
    tails = np.repeat(np.arange(nodes), degree)
    heads = (tails + np.tile(np.arange(1, degree + 1), nodes)) % nodes
    table = EdgeTable.from_edges(tails, heads, np.arange(len(tails)) % 1000, nodes)
    assert len(table) == len(tails)
    np.testing.assert_array_equal(table.weights_of(tails, heads), np.arange(len(tails)) % 1000)
    assert not table.weights_of(heads, tails).any()
    assert table.nbytes <= 64 * len(table)


def test_order_within_a_batch_is_the_order_of_decay() -> None:
    table = EdgeTable(2)
    table.upsert([0, 0], [1, 1], [1.0, 3.0], eta=0.5)
    assert table.weights_of([0], [1]).tolist() == [0.5 * 1.0 + 3.0]
    table.upsert([0], [1], [0.0], eta=1.0)
    assert table.weights_of([0], [1]).tolist() == [0.0]


def test_the_weight_of_a_much_used_edge_settles() -> None:
    """Where eta w = amount. Without forgetting, the control, it grows for ever."""
    uses = [np.zeros(2_000, int), np.ones(2_000, int), np.ones(2_000)]
    settled, grown = EdgeTable(2), EdgeTable(2)
    settled.upsert(*uses, eta=0.1)
    grown.upsert(*uses, eta=0.0)
    assert settled.weights_of([0], [1])[0] == pytest.approx(10.0, rel=1e-5)
    assert grown.weights_of([0], [1])[0] == 2_000.0


def test_links_lead_along_every_edge_both_ways() -> None:
    tails, heads, amounts = events_of(3, 50, 500)
    table = EdgeTable(50)
    table.upsert(tails, heads, amounts)
    links = table.links()
    for first, following, end, other in (
        (links.first_out, "next_out", "tail", "head"),
        (links.first_in, "next_in", "head", "tail"),
    ):
        found = []
        for node, e in enumerate(first.tolist()):
            while e != -1:
                assert links.edges[e][end] == node
                found.append((node, int(links.edges[e][other])))
                e = int(links.edges[e][following])
        pairs = set(zip(tails.tolist(), heads.tolist(), strict=True))
        assert sorted(found) == sorted(pairs if end == "tail" else {(j, i) for i, j in pairs})


def test_a_table_made_of_its_own_edges_is_the_same_table() -> None:
    table = EdgeTable(80)
    table.upsert(*events_of(5, 80, 900), eta=0.1)
    again = EdgeTable.from_edges(*table.edges(), nodes=table.nodes)
    for mine, its in zip(again.links()[1:3], table.links()[1:3], strict=True):
        np.testing.assert_array_equal(mine, its)
    for mine, its in zip(again.edges(), table.edges(), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_snapshot_stays_as_it_was() -> None:
    table = EdgeTable(3)
    table.upsert([0, 1], [1, 2], [1.0, 1.0])
    before = table.snapshot()
    kept = before.weights.copy()
    table.grow(5)
    table.upsert([0, 4], [1, 0], [1.0, 1.0])
    np.testing.assert_array_equal(before.weights, kept)
    assert (before.nodes, len(before)) == (3, 2)
    assert (table.snapshot().nodes, len(table)) == (5, 3)


def test_an_empty_table() -> None:
    table = EdgeTable()
    table.upsert([], [], [])
    assert len(table) == len(table.snapshot()) == table.snapshot().nodes == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 3], [1, 1], [1.0, 1.0]), r"tails must be in \[0, 3\)"),
        (([0, 1], [1, -1], [1.0, 1.0]), r"heads must be in \[0, 3\)"),
        (([0, 1], [1], [1.0, 1.0]), "of one length"),
        (([0, 1], [1, 2], [1.0]), "amounts of shape"),
        (([0, 1], [1, 2], [1.0, float("nan")]), "finite"),
        (([0, 1], [1, 2], [1.0, -1.0]), "at least 0"),
        (([0, 1], [1, 2], [1.0, 1.0], 1.5), "eta must be in"),
    ],
)
def test_bad_events_change_nothing(arguments: tuple, message: str) -> None:
    table = EdgeTable(3)
    table.upsert([0], [1], [1.0])
    with pytest.raises(ValueError, match=message):
        table.upsert(*arguments)
    assert (len(table), table.weights_of([0], [1])[0]) == (1, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": [[0, 1]]}, "one dimension"),
        ({"nodes": [0, 1], "lam": 1.5}, "lam"),
        ({"nodes": [0, 1], "kappa": -1.0}, "kappa"),
        ({"nodes": [0, 1], "max_lag": 0}, "max_lag"),
        ({"nodes": [0, 1], "delta": [0.0]}, "delta has shape"),
        ({"nodes": [0, 1], "delta": [0.0, float("inf")]}, "finite"),
    ],
)
def test_bad_paths_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hebbian_events(**arguments)
