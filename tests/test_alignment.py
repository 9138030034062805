"""The ordered alignment against its recursion, and what no order of steps can earn."""

from __future__ import annotations

import doctest
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from valuegraph import alignment
from valuegraph.alignment import match_strength, matched_landmarks, ordered_alignment

unit = st.floats(0.0, 1.0)


@st.composite
def cases(draw: st.DrawFn, ways: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """match (P, T, L), weights (P, L) summing to one per way, counted (T,)."""
    steps, landmarks = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    match = draw(arrays(np.float64, (ways, steps, landmarks), elements=unit))
    weights = draw(arrays(np.float64, (ways, landmarks), elements=st.floats(0.01, 1.0)))
    counted = draw(arrays(np.bool_, steps))
    return match, weights / weights.sum(axis=1, keepdims=True), counted


def last(match: np.ndarray, weights: np.ndarray, counted: np.ndarray) -> float:
    return float(ordered_alignment(match, weights, counted)[0, -1])


def all_counted(match: np.ndarray) -> np.ndarray:
    return np.ones(match.shape[1], np.bool_)


def best_assignment(match: np.ndarray, weights: np.ndarray, counted: np.ndarray) -> float:
    """Brute force: every way to give landmarks to later and later steps."""
    usable, landmarks = np.flatnonzero(counted), range(len(weights))
    before = np.concatenate([[0.0], np.cumsum(weights)])
    best = 0.0
    for n in range(min(len(usable), len(weights)) + 1):
        for steps in combinations(usable, n):
            for marks in combinations(landmarks, n):
                done = 0.0
                for t, k in zip(steps, marks, strict=True):
                    share = 1.0 if before[k] <= 0.0 else min(1.0, 2.0 * done / before[k])
                    done += weights[k] * match[t, k] * share
                best = max(best, done)
    return best


def similarity_sum(match: np.ndarray, weights: np.ndarray, counted: np.ndarray) -> float:
    """The control: what every step resembles, added up."""
    return float((match[0] @ weights[0])[counted].sum())


def test_the_numbers_in_the_docstrings() -> None:
    result = doctest.testmod(alignment)
    assert result.attempted >= 3
    assert result.failed == 0


@given(arrays(np.float64, (4, 5), elements=st.floats(-1.0, 1.0)))
def test_match_strength_is_a_clipped_line(cosine: np.ndarray) -> None:
    match = match_strength(cosine)
    assert ((match >= 0.0) & (match <= 1.0)).all()
    assert (match[cosine <= 0.85] == 0.0).all()
    inside = (match > 0.0) & (match < 1.0)
    np.testing.assert_allclose((match * 0.12 + 0.85)[inside], cosine[inside], atol=1e-12)


@given(arrays(np.float64, (4, 5), elements=st.floats(-1.0, 1.0)))
def test_a_step_matches_no_landmark_while_another_memory_is_much_nearer(cosine: np.ndarray) -> None:
    alone, nearest = match_strength(cosine), cosine.max(axis=1)
    match = match_strength(cosine, nearest)
    best = cosine == nearest[:, None]
    assert np.array_equal(match[best], alone[best])
    assert (match <= alone).all()
    assert (match[nearest[:, None] - cosine >= 0.05] == 0.0).all()


@given(cases(ways=3))
def test_an_alignment_lies_in_the_unit_interval_and_never_falls(case: tuple) -> None:
    aligned = ordered_alignment(*case)
    assert aligned.shape == case[0].shape[:2]
    assert (aligned >= 0.0).all()
    assert (aligned <= 1.0 + 1e-12).all()
    assert (np.diff(aligned, axis=1) >= 0.0).all()


@given(cases())
@settings(deadline=None)
def test_an_alignment_is_no_more_than_the_best_assignment(case: tuple) -> None:
    """The recursion keeps one best sum per prefix; a landmark's pay depends on that sum and grows with it."""
    match, weights, counted = case
    assert last(*case) == pytest.approx(best_assignment(match[0], weights[0], counted), abs=1e-12)


@given(cases(ways=3))
def test_ways_do_not_see_each_other(case: tuple) -> None:
    match, weights, counted = case
    together = ordered_alignment(match, weights, counted)
    alone = [ordered_alignment(match[p : p + 1], weights[p : p + 1], counted)[0] for p in range(3)]
    assert np.array_equal(together, np.stack(alone))


@given(cases(), st.integers(1, 3))
def test_padding_of_a_way_does_not_matter(case: tuple, extra: int) -> None:
    match, weights, counted = case
    longer = np.pad(match, ((0, 0), (0, 0), (0, extra)))
    assert np.array_equal(
        ordered_alignment(match, weights, counted),
        ordered_alignment(longer, np.pad(weights, ((0, 0), (0, extra))), counted),
    )


@given(cases())
def test_a_step_that_does_not_count_might_as_well_not_be_there(case: tuple) -> None:
    match, weights, counted = case
    if not counted.any():
        assert last(*case) == 0.0
        return
    kept = match[:, counted]
    assert last(*case) == last(kept, weights, all_counted(kept))


def perfect(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A rollout that goes a way of distinct landmarks exactly."""
    return np.eye(steps)[None], np.full((1, steps), 1.0 / steps)


def test_the_way_itself_is_worth_one_in_its_order_only() -> None:
    match, weights = perfect(5)
    counted = all_counted(match)
    assert last(match, weights, counted) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        order = rng.permutation(5)
        if (np.diff(order) > 0).all():
            continue
        assert last(match[:, order], weights, counted) <= 0.8 + 1e-12
        # Control: a sum over steps does not see the order.
        assert similarity_sum(match[:, order], weights, counted) == pytest.approx(1.0)


@given(st.integers(2, 6), st.data())
def test_saying_a_step_again_earns_nothing(steps: int, data: st.DataObject) -> None:
    match, weights = perfect(steps)
    prefix = data.draw(st.integers(1, steps))
    again = data.draw(st.lists(st.integers(0, prefix - 1), min_size=1, max_size=8))
    honest, looped = match[:, :prefix], match[:, [*range(prefix), *again]]
    gain = last(looped, weights, all_counted(looped)) - last(honest, weights, all_counted(honest))
    assert gain <= 1e-12
    # Control: the same repetitions raise the sum of similarities by a full landmark each.
    naive = similarity_sum(looped, weights, all_counted(looped))
    assert naive == pytest.approx((prefix + len(again)) / steps)


def test_a_late_step_alone_earns_little() -> None:
    match, weights = perfect(4)
    for t in range(1, 4):
        alone = match[:, t : t + 1]
        assert last(alone, weights, all_counted(alone)) == 0.0
    half = match[:, [0, 2]]  # half of what comes before the third landmark: it pays in full
    assert last(half, weights, all_counted(half)) == pytest.approx(0.5)


def test_leaving_out_the_last_step_costs_its_weight() -> None:
    match, weights = perfect(4)[0], np.array([[0.1, 0.2, 0.3, 0.4]])
    assert ordered_alignment(match, weights, all_counted(match))[0] == pytest.approx([0.1, 0.3, 0.6, 1.0])


@given(cases())
def test_the_matches_add_up_to_the_alignment(case: tuple) -> None:
    match, weights, counted = case
    found = matched_landmarks(match[0], weights[0], counted)
    assert sum(m.gain for m in found) == pytest.approx(last(*case), abs=1e-12)
    assert all(counted[m.step] and m.gain > 0.0 for m in found)
    for name in ("landmark", "step"):
        places = [getattr(m, name) for m in found]
        assert places == sorted(set(places))


@pytest.mark.parametrize(
    ("match", "weights", "counted"),
    [((1, 2, 3), (1, 2), 2), ((1, 2, 3), (1, 3), 3), ((2, 2, 3), (1, 3), 2), ((2, 3), (1, 3), 2)],
)
def test_arrays_that_do_not_fit_are_refused(match: tuple, weights: tuple, counted: int) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        ordered_alignment(np.ones(match), np.ones(weights), np.ones(counted, np.bool_))
