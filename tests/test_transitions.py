"""Transitions that were seen, whichever way round: brute force, and what no other order can have."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_scoring import scorer_of, utility
from valuegraph.calibration import Calibration
from valuegraph.edges import EdgeTable
from valuegraph.memories import Neighbours
from valuegraph.transitions import Transitions, transitions
from valuegraph.ways import Followed, arrived

CHAIN = EdgeTable.from_edges([0, 1, 2, 3], [1, 2, 3, 4], np.ones(4), nodes=6)
"""0 1 2 3 4, seen in this order; 5 was seen by itself."""
SHORTCUT = [([0, 1, 2, 3, 4], 1.0)] * 5 + [([0, 6, 3, 5], 0.0)] * 5
"""Nobody who came to 3 by 6 went on to 4."""


def moved(*states: int, kernel: float = 1.0, counted: list[bool] | None = None) -> Transitions:
    near = Neighbours(np.array(states)[:, None], np.full((len(states), 1), kernel))
    return transitions(CHAIN, near, np.array([True] * len(states) if counted is None else counted))


@st.composite
def visits(draw: st.DrawFn) -> tuple[EdgeTable, np.ndarray, np.ndarray]:
    """A table, and memories near some visits, in no particular order and some of them missing."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng, steps, k = np.random.default_rng(seed), draw(st.integers(0, 5)), draw(st.integers(1, 4))
    tails, heads = rng.integers(0, 6, (2, draw(st.integers(0, 20))))
    table = EdgeTable.from_edges(tails, heads, np.ones(len(tails)), nodes=6)
    return table, rng.integers(-1, 6, (steps, k)), np.square(rng.random((steps, k)))


@given(visits())
@settings(deadline=None)  # the first example compiles
def test_visits_follow_the_edge_that_they_are_nearest_to(case: tuple) -> None:
    table, nodes, kernel = case
    tails, heads, _ = table.edges()
    known = set(zip(tails.tolist(), heads.tolist(), strict=True))

    def nearest(a: int, b: int) -> float:
        pairs = product(zip(nodes[a], kernel[a], strict=True), zip(nodes[b], kernel[b], strict=True))
        near = [float(k * q) for (i, k), (j, q) in pairs if (i, j) in known and min(i, j) >= 0]
        return float(np.sqrt(max([k for k in near if k >= 1e-4], default=0.0)))

    forward, backward = table.followed(nodes, kernel)
    expected = [(nearest(t - 1, t), nearest(t, t - 1)) if t else (0.0, 0.0) for t in range(len(nodes))]
    np.testing.assert_allclose(np.stack([forward, backward], axis=1), np.reshape(expected, (-1, 2)))


def test_who_goes_as_was_seen_and_who_goes_the_other_way_round() -> None:
    forward, backward = moved(0, 1, 2, 3), moved(3, 2, 1, 0)
    assert forward.known.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert forward.order == pytest.approx([0.5, 1.05 / 1.1, 2.05 / 2.1, 3.05 / 3.1])
    assert backward.order == pytest.approx(1.0 - forward.order)
    assert forward.against.tolist() == [0.0] * 4
    assert backward.against.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert not backward.known.any()


def test_where_nothing_is_known_nothing_is_said() -> None:
    for states in ((5, 0, 5), (0, 2, 4), (3,)):
        unknown = moved(*states)
        assert not unknown.known.any()
        assert unknown.order.tolist() == [0.5] * len(states)
        assert not unknown.against.any()


def test_what_does_not_count_is_passed_over() -> None:
    idle = moved(0, 5, 1, 5, 2, counted=[True, False, True, False, True])
    assert idle.known.tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert idle.order[[0, 2, 4]] == pytest.approx(moved(0, 1, 2).order)
    assert idle.order[[1, 3]].tolist() == idle.order[[0, 2]].tolist()
    assert moved(0, 5, 1).known.tolist() == [0.0, 0.0, 0.0]  # control: the same steps, all of which count


def test_a_transition_is_as_near_as_its_steps_are() -> None:
    assert moved(0, 1, kernel=0.25).known.tolist() == [0.0, 0.25]
    assert moved(1, 0, kernel=0.25).against.tolist() == [0.0, 0.25]


def test_of_all_orders_only_one_goes_as_was_seen() -> None:
    orders = {states: moved(*states) for states in permutations(range(5))}
    assert [s for s, m in orders.items() if m.known[1:].all()] == [(0, 1, 2, 3, 4)]
    assert max(orders, key=lambda states: orders[states].order[-1]) == (0, 1, 2, 3, 4)


# --- what they are good for ---


def aligned(at_end: float, end: float) -> Followed:
    none = np.zeros(1)
    return Followed(none, none, np.array([at_end]), np.array([end]), none.astype(np.int64), 0)


@pytest.mark.parametrize(
    ("at_end", "end", "known", "order", "against", "good_end", "there"),
    [
        (1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0),  # along a way
        (0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0),  # by a step that was seen
        (0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0),  # by one that was not
        (0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0),  # after one that was seen the other way round only
        (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0),  # to where nobody's success ended
        (0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0),  # to somewhere else
        (1.0, 1.0, 1.0, 0.4, 0.0, 1.0, 0.0),  # along a way, but most of it backwards
    ],
)
def test_who_has_arrived(
    at_end: float, end: float, known: float, order: float, against: float, good_end: float, there: float
) -> None:
    went = Transitions(np.array([known]), np.array([order]), np.array([against]))
    assert arrived(aligned(at_end, end), went, np.array([good_end])).tolist() == [there]


def test_known_ways_put_together_are_a_way() -> None:
    """From 0 by 6 to 3, as failures went, and from there to 4, as successes did."""
    scorer = scorer_of(SHORTCUT, Calibration(support_floor=0.3, saturation=0.99))
    assert utility(scorer, 0, 6, 3, 4) > 0.95
    assert utility(scorer, 0, 1, 2, 3, 4) > 0.95
    # Controls: a step that nobody took, an order that nobody knows, one that is known the other way round.
    for states in ((0, 6, 4), (0, 3, 6, 4), (6, 0, 3, 4), (1, 0, 2, 3, 4), (0, 6, 3), (4,)):
        assert utility(scorer, *states) < 0.3
