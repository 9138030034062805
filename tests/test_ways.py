"""Remembered ways: which are believed, and who has come to the end of one that repeats itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from tests.test_scoring import GOAL, STATES, rollout, scorer_of, utility
from valuegraph.alignment import match_strength, ordered_alignment
from valuegraph.calibration import Calibration
from valuegraph.ways import Ways, contradiction, follow, landmark_cosines, landmarks_met

BOILS = [0, 1, 2, 1, 2]
"""A way that ends with what it has said before: water is looked at, heated, and looked at again."""


def test_outcomes_that_agree_leave_nothing_to_doubt() -> None:
    assert contradiction(np.array([5.0, 0.0, 1.0]), np.array([5.0, 7.0, 1.0])) == 0.0
    assert contradiction(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.0  # nobody to disagree with
    assert contradiction(np.zeros(0), np.zeros(0)) == 0.0


def test_doubt_is_twice_the_prior_strength_of_a_beta_binomial() -> None:
    """p ~ Beta(s / 2, s / 2) at each node: 2 s comes back, in whole numbers."""
    rng = np.random.default_rng(0)
    for strength in (0.5, 1.0, 1.5, 2.0):
        p = rng.beta(0.5 * strength, 0.5 * strength, 20_000)
        ended = rng.integers(2, 9, len(p)).astype(np.float64)
        assert contradiction(rng.binomial(ended.astype(int), p).astype(np.float64), ended) == 2.0 * strength


@pytest.mark.parametrize(("wrong", "doubt"), [(0.0, 0.0), (0.03, 0.0), (0.1, 1.0), (0.25, 5.0), (0.5, 5.0)])
def test_doubt_grows_with_the_share_of_wrong_outcomes(wrong: float, doubt: float) -> None:
    """Nine in ten of the ends are good ones, which is no reason to doubt them."""
    rng = np.random.default_rng(0)
    good, ended = rng.random(20_000) < 0.9, rng.integers(2, 9, 20_000)
    won = rng.binomial(ended, np.where(good, 1.0 - wrong, wrong))
    assert contradiction(won.astype(np.float64), ended.astype(np.float64)) == doubt


def test_outcomes_that_know_nothing_of_the_end_are_doubted_most() -> None:
    rng = np.random.default_rng(0)
    ended = np.full(1_000, 6.0)
    assert contradiction(rng.binomial(6, 0.5, 1_000).astype(np.float64), ended) == 5.0
    graded = np.full(1_000, 3.5)  # all alike at .58 each: no contradiction
    assert contradiction(graded, ended) == 0.0


@pytest.mark.parametrize("wrong", [0, 5])
def test_one_success_alone_is_believed_where_outcomes_agree(wrong: int) -> None:
    """Sixteen came to 3, five more to 6 and failed; of the former some are said to have failed, of the latter
    some to have won. Then the one that won at 9 may be a mistake as well."""
    right = [([0, 1, 2, 3], 1.0)] * (16 - wrong) + [([0, 4, 5, 6], 0.0)] * (16 - wrong)
    turned = [([0, 1, 2, 3], 0.0)] * wrong + [([0, 4, 5, 6], 1.0)] * wrong
    scorer = scorer_of([*right, *turned, ([0, 7, 8, 9], 1.0)])
    sound = {scorer.graph.texts[way.nodes[-1]]: way.sound for way in scorer.ways.to(0)}
    assert sound["3"] == 1.0
    assert (sound["9"] == 1.0) == (wrong == 0)
    assert (utility(scorer, 0, 7, 8, 9) < utility(scorer, 0, 1, 2, 3) - 0.3) == (wrong > 0)
    assert utility(scorer, 0, 1, 2, 3) > 0.8  # though many who did so are said to have failed


def test_a_way_that_ends_with_a_repetition_is_done_with_it_and_not_before() -> None:
    scorer = scorer_of([(BOILS, 1.0)] * 5 + [([0, 4], 0.0)] * 5)
    (way,) = scorer.ways.to(0)
    assert way.said == 2
    assert utility(scorer, *BOILS) > utility(scorer, *BOILS[:-1]) + 0.02
    ended = replace(rollout(*BOILS), ended=(True,))
    assert scorer.score(ended)[0].potential[-1] == utility(scorer, *BOILS)


def test_repeating_the_end_does_not_stand_for_the_way() -> None:
    scorer = scorer_of([(BOILS, 1.0)] * 5 + [([0, 4], 0.0)] * 5)
    assert utility(scorer, 2, 2, 2, 2) < 0.5 * utility(scorer, *BOILS)
    once = utility(scorer, *BOILS)
    assert utility(scorer, *BOILS, 2, 2, 2) <= once + 1e-9  # control: further ones add nothing


def test_one_success_with_a_repetition_at_its_end_may_be_chance() -> None:
    scorer = scorer_of([(BOILS, 1.0), ([0, 5, 6], 1.0)] + [([0, 4], 0.0)] * 5)
    assert [way.said for way in scorer.ways.to(0)] == [1, 1]


def test_what_does_not_count_meets_no_landmark_but_an_end_that_is_repeated() -> None:
    scorer = scorer_of([(BOILS, 1.0)] * 5)
    ways, likeness = scorer.ways.towards(GOAL)
    assert likeness.tolist() == pytest.approx([1.0])
    counted, first = np.array([True, True, True, False, False]), np.array([0, 1, 2, 1, 2])
    cosine, arrived = landmark_cosines(STATES[BOILS], ways, counted, first)
    assert cosine.shape == (1, 5, 4)  # 0, 1, 2, and 2 again; 1 again is no end
    assert (cosine[0, 3] == -1.0).all()
    assert cosine[0, 4].tolist() == [-1.0, -1.0, -1.0, 1.0]
    assert arrived.tolist() == [[0, 0, 0, 0, 2]]


def test_the_nearest_goals_come_first_and_the_shortest_way_to_each() -> None:
    ways = Ways(scorer_of([([0, 1, 2, 3], 1.0), ([0, 3], 1.0)]).graph)
    assert [len(way.nodes) for way in ways.towards(GOAL)[0]] == [2, 4]
    assert ways.towards(STATES[0])[1].tolist() == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("goal", [GOAL, STATES[0]])
def test_one_goal_may_ask_for_more_than_64_things(goal: np.ndarray) -> None:
    """Many short recipes and one long one have the goal in common; to a new goal the shortest must do."""
    pairs = permutations([0, 4, 5, 6, 7, 8, 10, 11, 12], 2)
    scorer = scorer_of([*((list(pair), 1.0) for pair in pairs), ([9, 1, 2, 3], 1.0)])
    ways, likeness = scorer.ways.towards(goal)
    known = bool(goal is GOAL)
    assert len(ways) == (73 if known else 64) == len(likeness)
    chosen = scorer.ways.promising(STATES[[9, 1, 2, 3]], ways, np.ones(len(ways)))
    assert len(chosen) == 64
    assert np.array_equal(chosen, np.unique(chosen))
    assert (72 in chosen) == known
    if known:
        assert utility(scorer, 9, 1, 2, 3) > 0.9
        assert scorer.score(rollout(9, 1, 2, 3))[0].way == ways[72].path


def test_ways_that_are_not_trusted_are_not_followed() -> None:
    scorer = scorer_of([([0, 1], 1.0), ([0, 1, 2], 1.0), ([0, 1, 2, 3], 1.0)])
    ways = scorer.ways.towards(GOAL)[0]
    assert scorer.ways.promising(STATES[:3], ways, np.array([0.0, 0.5, 1.0])).tolist() == [1, 2]
    assert scorer.ways.promising(STATES[:3], ways, np.zeros(3)).tolist() == [0]  # one must be named


def test_no_way_beyond_the_promising_ones_goes_further() -> None:
    rng = np.random.default_rng(0)
    routes = [(rng.permutation(10)[: rng.integers(3, 8)].tolist(), 1.0) for _ in range(120)]
    scorer = scorer_of(routes)
    ways = scorer.ways.towards(GOAL)[0]
    for _ in range(20):
        states = rng.permutation(10)[:6]
        steps, seen, number = STATES[states], np.ones(6, np.bool_), np.arange(6)
        chosen = scorer.ways.promising(steps, ways, np.ones(len(ways)))
        one, all_ways = (
            follow(steps, some, np.ones(len(some)), seen, number, None)
            for some in ([ways[i] for i in chosen], ways)
        )
        assert one.strict[-1] == pytest.approx(all_ways.strict[-1])


def test_who_arrives_is_forgiven_what_was_left_out_and_who_does_not_is_not() -> None:
    """Four steps lead to 4, of which some were done otherwise."""
    routes = [([0, 1, 2, 3, 4], 1.0)] * 5 + [([0, 6, 5], 0.0)] * 5
    scorer = scorer_of(routes, Calibration(support_floor=0.3, saturation=0.99))
    assert utility(scorer, 0, 1, 2, 9, 4) > 0.95 > 0.85 > utility(scorer, 0, 1, 2, 9, 3)
    assert utility(scorer, 4) < 0.5  # the end alone is none: nothing of what leads there was done
    ways = scorer.ways.towards(GOAL)[0]
    for states, there in (([0, 1, 2, 3, 4], 1.0), ([0, 1, 2, 3, 9], 0.0), ([4, 3, 2, 1, 0], 0.0)):
        seen = np.full(len(states), True)
        done = follow(STATES[states], ways, np.ones(len(ways)), seen, np.arange(len(states)), None)
        assert done.at_end[-1] == pytest.approx(there)
        assert (done.at_end[:-1] == 0.0).all()


def test_a_dead_end_on_the_way_is_not_forgiven() -> None:
    scorer = scorer_of([([0, 1, 2, 3], 1.0)] * 5 + [([0, 1, 2, 4], 0.0)] * 5)
    assert utility(scorer, 0, 1, 2, 4, 3) < 0.02 < 0.95 < utility(scorer, 0, 1, 2, 5, 3)


def test_what_is_told_alike_does_not_stand_for_each_other() -> None:
    """One piece of wood is told nearly as two are, and nobody places a table with one."""
    told = STATES[:5].copy()
    told[1] = 0.95 * STATES[0] + np.sqrt(1.0 - 0.95**2) * STATES[1]
    way, weights = told[[0, 1, 2]], np.full((1, 3), 1.0 / 3.0)
    right, swapped = ([told[list(order)] @ way.T] for order in ((0, 1, 2), (1, 0, 2)))
    seen = np.full(3, True)
    for cosine, worth in ((right, 1.0), (swapped, 2.0 / 3.0)):
        met = landmarks_met(np.array(cosine, np.float64), None)
        assert ordered_alignment(met, weights, seen)[0, -1] == pytest.approx(worth, abs=1e-6)
    alike = ordered_alignment(match_strength(swapped), weights, seen)[0, -1]
    assert alike == pytest.approx((1.0 + 2.0 * (0.95 - 0.85) / 0.12) / 3.0)  # control: by likeness alone
