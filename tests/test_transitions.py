"""Transitions that were seen, whichever way round: brute force, and what no other order can have."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_scoring import rollout, scorer_of, utility
from valuegraph.calibration import Calibration
from valuegraph.edges import EdgeTable
from valuegraph.episodes import Episode, Step
from valuegraph.explain import explain_rollout
from valuegraph.memories import Neighbours
from valuegraph.transitions import Transitions, transitions
from valuegraph.ways import Followed, arrived

CHAIN = EdgeTable.from_edges([0, 1, 2, 3], [1, 2, 3, 4], np.ones(4), nodes=6)
"""0 1 2 3 4, seen in this order; 5 was seen by itself."""
SHORTCUT = [([0, 1, 2, 3, 4], 1.0)] * 5 + [([0, 6, 3, 5], 0.0)] * 5
"""Nobody who came to 3 by 6 went on to 4."""


def moved(*states: int, kernel: float = 1.0, counted: list[bool] | None = None) -> Transitions:
    """Everything begins at 0."""
    near = Neighbours(np.array(states)[:, None], np.full((len(states), 1), kernel))
    begun = (np.array(states) == 0).astype(np.float64)
    return transitions(CHAIN, near, np.array([True] * len(states) if counted is None else counted), begun)


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


@given(visits(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_chain_of_edges_is_as_strong_as_its_weakest_link(case: tuple, seed: int) -> None:
    """Brute force: every choice of visits that leads to a visit, in order."""
    table, nodes, kernel = case
    begun = np.random.default_rng(seed).random(len(nodes))

    def link(s: int, t: int) -> float:
        return float(table.followed(nodes[[s, t]], kernel[[s, t]])[0][1])

    def best(t: int) -> float:
        before = [s for n in range(1, t + 1) for s in combinations(range(t), n)]
        chains = [min(begun[s[0]], *(link(*pair) for pair in pairwise([*s, t]))) for s in before]
        return max([begun[t], *chains])

    expected = [best(t) for t in range(len(nodes))]
    np.testing.assert_allclose(table.reached(nodes, kernel, begun), expected)


def test_more_than_eight_visits_are_not_left_out() -> None:
    begun = np.eye(1, 12)[0]
    for idle, there in ((8, 1.0), (9, 0.0)):
        nodes = np.array([0] + [5] * idle + [1])[:, None]
        assert CHAIN.reached(nodes, np.ones(nodes.shape), begun[: len(nodes)])[-1] == there


def test_who_goes_as_was_seen_and_who_goes_the_other_way_round() -> None:
    forward, backward = moved(0, 1, 2, 3), moved(3, 2, 1, 0)
    assert forward.reached.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert forward.order == pytest.approx([0.5, 1.05 / 1.1, 2.05 / 2.1, 3.05 / 3.1])
    assert backward.order == pytest.approx(1.0 - forward.order)
    assert forward.against.tolist() == [0.0] * 4
    assert backward.against.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert not backward.reached.any()


def test_where_nothing_is_known_nothing_is_said() -> None:
    for states in ((5, 0, 5), (0, 2, 4), (3,)):
        unknown = moved(*states)
        assert not unknown.reached.any()
        assert unknown.order.tolist() == [0.5] * len(states)
        assert not unknown.against.any()


def test_what_does_not_count_is_passed_over() -> None:
    idle = moved(0, 5, 1, 5, 2, counted=[True, False, True, False, True])
    assert idle.reached.tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert idle.order[[0, 2, 4]] == pytest.approx(moved(0, 1, 2).order)
    assert idle.order[[1, 3]].tolist() == idle.order[[0, 2]].tolist()
    assert moved(0, 5, 1).reached.tolist() == [0.0] * 3  # control: the same steps, all of which count


def test_what_was_done_beside_a_way_is_left_out_but_before_its_last_step() -> None:
    assert moved(0, 5, 1, 2).reached.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert moved(0, 1, 5, 2).reached.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert not moved(5, 1, 2, 3).reached.any()  # nor does it begin anywhere but at a beginning


def test_a_transition_is_as_near_as_its_steps_are() -> None:
    assert moved(0, 1, kernel=0.25).reached.tolist() == [0.0, 0.25]
    assert moved(1, 0, kernel=0.25).against.tolist() == [0.0, 0.25]


def test_of_all_orders_only_one_goes_as_was_seen() -> None:
    orders = {states: moved(*states) for states in permutations(range(5))}
    assert [s for s, m in orders.items() if m.reached[1:].all()] == [(0, 1, 2, 3, 4)]
    assert max(orders, key=lambda states: orders[states].order[-1]) == (0, 1, 2, 3, 4)


# --- what they are good for ---


def aligned(at_end: float, end: float, strict: float = 0.0) -> Followed:
    none = np.zeros(1)
    return Followed(
        np.array([strict]), none, np.array([at_end]), none, np.array([end]), none.astype(np.int64), 0
    )


@pytest.mark.parametrize(
    ("at_end", "end", "reached", "order", "against", "good_end", "there"),
    [
        (1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0),  # along a way
        (0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0),  # by transitions that were seen
        (0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0),  # by others
        (0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0),  # one of which was seen the other way round only
        (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0),  # to where nobody's success ended
        (0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0),  # to somewhere else
        (1.0, 1.0, 0.0, 0.4, 0.0, 1.0, 0.0),  # along a way, but most of it backwards
    ],
)
def test_who_has_arrived(
    at_end: float, end: float, reached: float, order: float, against: float, good_end: float, there: float
) -> None:
    went = Transitions(np.array([order]), np.array([against]), np.array([reached]))
    assert arrived(aligned(at_end, end), went, np.zeros(1), np.array([good_end])).tolist() == [there]


@pytest.mark.parametrize(
    ("ending", "strict", "order", "there"),
    [
        (1.0, 0.7, 1.0, 1.0),  # where successes end, and nearly nothing else happened
        (0.5, 0.7, 1.0, 0.0),  # where as much else did
        (1.0, 0.4, 1.0, 0.0),  # having done little of any way
        (1.0, 0.7, 0.4, 0.0),  # having done it backwards
        (0.65, 0.7, 1.0, 0.5),
    ],
)
def test_who_is_where_nearly_all_that_happened_was_a_good_end_has_arrived(
    ending: float, strict: float, order: float, there: float
) -> None:
    went = Transitions(np.array([order]), np.zeros(1), np.zeros(1))
    surely = arrived(aligned(0.0, 0.0, strict), went, np.array([ending]), np.ones(1))
    assert surely == pytest.approx(np.array([there]))


def test_known_ways_put_together_are_a_way() -> None:
    """From 0 by 6 to 3, as failures went, and from there to 4, as successes did."""
    scorer = scorer_of(SHORTCUT, Calibration(support_floor=0.3, saturation=0.99))
    for states in ((0, 6, 3, 4), (0, 6, 9, 3, 4), (9, 0, 6, 3, 4), (0, 1, 2, 3, 4)):
        assert utility(scorer, *states) > 0.95
    # Controls: steps that nobody took, the last two alone, and an order that is not known, or not this way.
    unknown = ((0, 6, 4), (0, 9, 3, 4), (0, 6, 9, 4), (0, 3, 4), (3, 4), (9, 3, 4), (0, 6, 3), (4,))
    for states in (*unknown, (0, 3, 6, 4), (6, 0, 3, 4), (1, 0, 2, 3, 4)):
        assert utility(scorer, *states) < 0.3


def test_an_explanation_says_that_what_was_left_out_costs_no_more() -> None:
    scorer = scorer_of(SHORTCUT, Calibration(support_floor=0.3, saturation=0.99))
    for states, arrival, said in (
        ((0, 6, 3, 4), 1.0, True),
        ((0, 1, 2, 3, 4), 1.0, False),
        ((0, 3, 4), 0.0, False),
    ):
        episode = Episode("one", tuple(Step(str(state)) for state in states), goal="goal")
        why = explain_rollout(episode, rollout(*states), scorer)
        assert why.arrival == pytest.approx(arrival, abs=0.01)
        assert ("what it left out costs no more" in str(why)) == said
