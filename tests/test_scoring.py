"""Scores from a memory without a learner, where everything can be worked out by hand; and the calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from valuegraph.accounts import Told, closed
from valuegraph.calibration import Calibration, calibrate, memory_share, saturation
from valuegraph.config import FitConfig
from valuegraph.context import Encoded, learner_width
from valuegraph.credit import discounted_credit
from valuegraph.graph import Memory, ValueGraph, Visit
from valuegraph.networks import InstrumentalNet
from valuegraph.scores import Scores, collect
from valuegraph.scoring import Scorer
from valuegraph.utility import alive, carried, gathered, hold

DIM = 16
STATES = np.eye(DIM, dtype=np.float32)
GOAL, OTHER_GOAL = STATES[-1], STATES[-2]
unit = st.floats(0.0, 1.0)


def rollout(*states: int, goal: np.ndarray = GOAL) -> Encoded:
    parts = (goal[None],) if goal.any() else (np.zeros((0, DIM), np.float32),)
    return Encoded(STATES[list(states)], goal[None], np.array([0, len(states)]), parts)


def together(rollouts: list[Encoded]) -> Encoded:
    return Encoded(
        np.concatenate([r.steps for r in rollouts]),
        np.concatenate([r.goals for r in rollouts]),
        np.concatenate([[0], np.cumsum([len(r.steps) for r in rollouts])]),
        tuple(r.clauses[0] for r in rollouts),
    )


def scorer_of(
    routes: list[tuple[list[int], float]], calibration: Calibration | None = None, z_dim: int = 0
) -> Scorer:
    graph = ValueGraph(DIM, z_dim, FitConfig(device="cpu"))
    z = np.eye(1, z_dim, dtype=np.float32) if z_dim else None
    for states, outcome in routes:
        phi = STATES[states]
        role = None if z is None else np.repeat(z, len(phi), axis=0)
        keys = graph.keys(role, phi, np.broadcast_to(GOAL, phi.shape))
        memories = [Memory(key, str(s)) for key, s in zip(keys, states, strict=True)]
        credit = discounted_credit(outcome, len(states), graph.config.gamma)
        graph.write([Visit(GOAL, "goal", memories, credit, outcome, True)])
    return Scorer(graph, None, calibration or Calibration(support_floor=0.3, saturation=0.8))


def test_a_sure_dead_end_cannot_be_washed_off() -> None:
    """State 4 always ended badly; going on from there as if nothing had happened earns nothing."""
    routes = [([0, 1, 2, 3], 1.0)] * 5 + [([0, 1, 2, 4], 0.0)] * 5 + [([5, 6, 7], 1.0)] * 3
    lost = scorer_of(routes)
    assert utility(lost, 0, 1, 2) > 0.1
    assert utility(lost, 0, 1, 2, 4) < 0.02
    assert utility(lost, 0, 1, 2, 4, 6) < 0.02
    assert utility(lost, 0, 1, 2, 4, 3) < 0.02
    assert utility(lost, 0, 1, 2, 6, 3) > 0.5  # control: the same detour through no dead end


def test_a_dead_end_is_none_where_the_learner_says_so() -> None:
    """Tasks that share the words of their goal have dead ends of their own."""
    sure = np.array([0.0, 1.0, 0.0, 0.0])
    assert alive(sure, None).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert alive(sure, np.array([0.1, 0.1, 0.9, 0.9])).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert alive(sure, np.full(4, 0.5)).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert alive(sure, np.full(4, 0.35)) == pytest.approx([1.0, 0.5, 0.5, 0.5])
    assert alive(np.full(4, 0.5), None).tolist() == [1.0, 1.0, 1.0, 1.0]  # as many end well there


def test_gains_say_how_far_a_rollout_is_towards_a_new_goal() -> None:
    """A learner by whom every step adds .15; a known goal is mostly a matter of its ways."""
    net = InstrumentalNet(learner_width(DIM), 4, 4).eval()
    with torch.no_grad():
        for reader, bias in ((net.gain, 2.0), (net.own_gain, 1.0)):  # gains are told on a scale of ten
            reader[-1].weight.zero_()
            reader[-1].bias.fill_(bias)
    learned = scorer_of([([0, 1, 2, 3], 1.0)] * 5, z_dim=4)
    learned.net, learned.graph.episodes = net, 200
    new = learned.score(rollout(0, 1, 1, 2, goal=STATES[9]))[0]
    assert new.running == pytest.approx([0.15, 0.3, 0.3, 0.45], abs=1e-3)  # a repeat adds nothing
    known = learned.score(rollout(0, 1, 1, 2))[0]
    gains = np.array([0.15, 0.3, 0.3, 0.45])
    for reader in (net.gain, net.own_gain):
        reader[-1].bias.data.fill_(0.0)
    ways = learned.score(rollout(0, 1, 1, 2))[0]
    assert known.running == pytest.approx(ways.running + 0.3 * gains)
    # In the end gains are no more than a bound, and none where the memory is steady.
    assert (ways.closing <= known.closing).all()
    learned.calibration = replace(learned.calibration, memory_share=0.85)
    steady = learned.score(rollout(0, 1, 1, 2))[0].closing
    reader[-1].bias.data.fill_(2.0)
    assert learned.score(rollout(0, 1, 1, 2))[0].closing == pytest.approx(steady)


def told(**known: list[float]) -> Told:
    """Four steps of a known goal; what is not given is as good as it gets."""
    column = {name: np.array(values) for name, values in known.items()}
    full = {name: np.ones(4) for name in Told._fields if name not in ("value", "gains")}
    return Told(**({"value": None, "gains": None} | full | column))


def close(said: Told, steady: float, running: float = 1.0, at_end: float = 0.0) -> np.ndarray:
    ones = np.ones(4)
    return closed(said, ones, ones > 0.0, running * ones, ones, at_end * ones, steady).total


def test_what_was_undone_since_is_lost_where_the_memory_is_steady() -> None:
    """u falls to two thirds of what it was, and rises again."""
    said = told(remembered=[0.6, 0.9, 0.6, 0.9])
    lost, kept_whole = close(said, 1.0), close(said, 0.0)
    assert lost[[0, 1, 3]] == pytest.approx(kept_whole[[0, 1, 3]])
    assert lost[2] == pytest.approx(kept_whole[2] * (2.0 / 3.0) ** 2)
    assert close(said, 0.5)[2] == pytest.approx(kept_whole[2] * 2.0 / 3.0)
    assert close(said, 1.0, at_end=1.0)[2] == 1.0  # who has arrived has lost nothing


def test_where_the_memory_is_unsteady_nobody_is_worth_more_in_the_end_than_on_his_way() -> None:
    said = told(strict=[0.2, 0.4, 0.6, 0.8])
    alone = close(said, 1.0, running=0.5)
    assert alone == pytest.approx(close(said, 1.0))
    assert close(said, 0.0, running=0.5) == pytest.approx(np.minimum(alone, 0.5))
    assert close(said, 0.0, running=0.5, at_end=1.0) == pytest.approx(np.ones(4))


def test_how_steady_a_memory_is_follows_from_its_share() -> None:
    steady = [Calibration(memory_share=share).steady for share in (0.4, 0.625, 0.85)]
    assert steady == pytest.approx([0.0, 0.5, 1.0])


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """0 1 2 3 succeeds, 0 4 fails; 5 6 7 succeeds too."""
    return scorer_of([([0, 1, 2, 3], 1.0)] * 5 + [([0, 4], 0.0)] * 5 + [([5, 6, 7], 1.0)] * 3)


def utility(scorer: Scorer, *states: int, goal: np.ndarray = GOAL) -> float:
    return float(scorer.score(rollout(*states, goal=goal))[0].potential[-1])


# --- pure parts ---


def test_a_step_off_the_ways_undoes_nothing_but_adds_nothing(scorer: Scorer) -> None:
    """State 9 was never seen: after it the memory stands by what it said, also at the end."""
    value, support = np.array([0.3, 0.0, 0.6, 0.0]), np.array([1.0, 0.0, 0.8, 0.2])
    said, firmly = carried(value, support, np.full(4, True))
    assert said == pytest.approx([0.3, 0.3, 0.54, 0.8 * 0.54])
    assert firmly == pytest.approx(np.ones(4))
    said, _ = carried(value, support, np.array([True, True, False, True]))
    assert said == pytest.approx([0.3, 0.3, 0.54, 0.8 * 0.3])  # what does not count leaves no trace
    nothing, never = carried(np.array([0.9, 0.9]), np.zeros(2), np.full(2, True))
    assert not nothing.any()
    assert not never.any()
    assert utility(scorer, 0, 1, 9) == pytest.approx(utility(scorer, 0, 1), rel=0.5)
    assert utility(scorer, 0, 1, 9) <= utility(scorer, 0, 1)


@given(st.lists(st.tuples(unit, st.booleans()), min_size=1, max_size=20))
def test_hold_lets_a_step_without_evidence_lower_but_not_raise(steps: list[tuple[float, bool]]) -> None:
    potential, counted = (np.array(column) for column in zip(*steps, strict=True))
    held = hold(potential, counted)
    assert np.array_equal(held[counted], potential[counted])
    assert (held <= potential).all()
    rise = np.diff(held, prepend=0.0)
    assert (rise[~counted] <= 0.0).all()


@given(st.lists(st.tuples(unit, st.booleans(), st.integers(0, 19)), min_size=1, max_size=20))
def test_who_returns_gets_back_what_was_there_and_no_more(steps: list[tuple[float, bool, int]]) -> None:
    potential, counted, earlier = (np.array(column) for column in zip(*steps, strict=True))
    first = np.minimum(earlier, np.arange(len(steps)))
    lost, back = hold(potential, counted), hold(potential, counted, first)
    assert np.array_equal(back[counted], potential[counted])
    assert ((lost <= back) & (back <= potential)).all()
    for t in np.flatnonzero(~counted):
        assert back[t] <= max(back[t - 1] if t else 0.0, back[first[t]] if first[t] < t else 0.0)


@given(arrays(np.float64, 10, elements=st.floats(-1.0, 1.0)), st.floats(-0.5, 0.9), st.floats(0.01, 0.3))
def test_goal_match_grows_with_the_cosine_inside_the_unit_interval(
    cosine: np.ndarray, mid: float, spread: float
) -> None:
    calibration = Calibration(goal_mid=mid, goal_spread=spread)
    match = calibration.goal_match(np.sort(cosine))
    assert ((match >= 0.0) & (match <= 1.0)).all()
    assert (np.diff(match) >= 0.0).all()
    low, high = calibration.goal_match(np.array([mid - 3 * spread, mid + 3 * spread]))
    assert low < 0.1 < 0.9 < high


@given(
    arrays(np.float64, 12, elements=unit),
    arrays(np.bool_, 12),
    arrays(np.float64, st.integers(0, 5), elements=unit),
)
def test_saturation_lies_between_zero_and_one(totals: np.ndarray, won: np.ndarray, short: np.ndarray) -> None:
    assert 0.0 < saturation(totals, won, short) <= 1.0


def test_saturation_lets_successes_reach_one_but_not_failures() -> None:
    won, lost = np.linspace(0.6, 0.9, 20), np.linspace(0.0, 0.5, 20)
    totals, succeeded = np.concatenate([won, lost]), np.arange(40) < 20
    level = saturation(totals, succeeded, np.array([0.55]))
    assert (won >= level).mean() >= 0.7
    assert (lost < level).all()
    assert saturation(totals, succeeded, np.full(20, 0.8)) > level  # nor successes without their last step
    # Where nearly all lack nothing, a hundredth less is as good.
    assert saturation(np.full(20, 0.99), np.ones(20, np.bool_), np.full(20, 0.4)) == 0.95


def test_the_account_that_rises_more_steadily_leads() -> None:
    steady, late = np.linspace(0.0, 1.0, 9), np.array([0.0] * 8 + [1.0])
    nearly = steady.copy()
    nearly[4] = 0.55  # hardly less steady: no reason to go by the other
    assert memory_share([late] * 5, [steady] * 5) == pytest.approx(0.4)
    assert memory_share([nearly] * 5, [steady] * 5) == pytest.approx(0.85, abs=0.01)
    assert memory_share([steady] * 5, [late] * 5) == pytest.approx(0.85)
    assert memory_share([np.ones(6)] * 5, [steady[:6]] * 5) == pytest.approx(0.4)  # no change says nothing
    # Where successes disagree neither leads, unless there are many of them.
    few, many = (memory_share([late, steady, late] * n, [steady, late, steady] * n) for n in (2, 40))
    assert 0.4 < few < 0.6
    assert many == pytest.approx(0.4, abs=0.001)
    # Four successes are too few, and so are any number that are over at once.
    assert memory_share([late] * 4, [steady] * 4) == Calibration().memory_share
    assert memory_share([late[-3:]] * 9, [steady[:3]] * 9) == Calibration().memory_share


def test_what_leads_on_the_way_changes_no_total_of_who_has_arrived() -> None:
    net = InstrumentalNet(learner_width(DIM), 4, 4).eval()
    scorer = scorer_of([([0, 1, 2, 3], 1.0)] * 5, z_dim=4)
    scorer.net = net
    told = []
    for share in (0.4, 0.85):
        scorer.calibration = Calibration(support_floor=0.3, saturation=0.8, memory_share=share)
        told.append(scorer.score(rollout(0, 1, 2, 3))[0])
    assert told[0].closing[-1] == told[1].closing[-1] == 1.0
    assert not np.allclose(told[0].running, told[1].running)


@given(
    arrays(np.float64, 12, elements=st.floats(-1.0, 1.0)),
    arrays(np.bool_, 12),
    arrays(np.int64, 12, elements=st.integers(0, 11)),
)
def test_what_does_not_count_gains_nothing(gain: np.ndarray, counted: np.ndarray, said: np.ndarray) -> None:
    first = np.array([np.flatnonzero(said == word)[0] for word in said])
    counted &= first == np.arange(12)
    gathered_so_far = gathered(gain, counted, first)
    assert (gathered_so_far >= 0.0).all()
    assert (gathered_so_far <= 1.0).all()
    before = np.maximum.accumulate(np.concatenate([[0.0], gathered_so_far[:-1]]))
    repeats = ~counted & (first < np.arange(12))
    assert (gathered_so_far <= before)[repeats].all()  # who returns wins back what he had, no more
    others = ~counted & ~repeats
    assert (gathered_so_far <= np.concatenate([[0.0], gathered_so_far[:-1]]))[others].all()


def test_gains_that_all_count_are_summed_up_between_none_and_all() -> None:
    gain, all_count, first = np.array([-0.5, 0.25, 0.5, 0.5, -0.25]), np.ones(5, np.bool_), np.arange(5)
    assert gathered(gain, all_count, first).tolist() == [0.0, 0.25, 0.75, 1.0, 0.75]
    assert gathered(gain[1:3], all_count[:2], first[:2]).tolist() == np.cumsum(gain[1:3]).tolist()


def test_who_has_surely_arrived_has_all() -> None:
    """What else differs from remembered successes is forgiven, and who is elsewhere is not."""
    said = told(remembered=[0.63] * 4, strict=[0.9] * 4)
    there, surely, perhaps, away = (close(said, 1.0, at_end=x)[0] for x in (1.0, 0.85, 0.5, 0.0))
    assert there == surely == 1.0
    assert away < perhaps < 1.0


# --- calibration ---


def groups(tasks: int, episodes: int, seed: int = 0) -> tuple[Encoded, np.ndarray]:
    """Tasks whose steps share half of what they say."""
    rng = np.random.default_rng(seed)
    common, number = rng.standard_normal(DIM), np.repeat(np.arange(tasks), episodes)
    steps = common + 0.5 * rng.standard_normal((len(number) * 4, DIM))
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    goals = STATES[number]
    parts = tuple(goal[None] for goal in goals)
    return Encoded(steps.astype(np.float32), goals, np.arange(0, len(steps) + 1, 4), parts), number


@pytest.mark.parametrize(("tasks", "episodes"), [(4, 5), (1, 20), (2, 1)])
def test_the_floor_of_support_lets_honest_steps_through_and_alien_ones_not(tasks: int, episodes: int) -> None:
    encoded, number = groups(tasks, episodes)
    calibration = calibrate(encoded, np.ones(len(number)), number)
    assert 0.0 < calibration.support_floor <= 0.9
    unseen = groups(tasks, episodes, seed=0)[0].steps + 0.05
    nearest = (unseen @ encoded.steps.T).max(axis=1)
    assert (nearest > calibration.support_floor).mean() > 0.95
    shared = encoded.steps.mean(axis=0)
    alien = np.random.default_rng(1).standard_normal((50, DIM))
    alien -= np.outer(alien @ shared, shared) / (shared @ shared)
    alien /= np.linalg.norm(alien, axis=1, keepdims=True)
    assert ((alien @ encoded.steps.T).max(axis=1) < calibration.support_floor).mean() > 0.5


def test_rounding_does_not_decide_what_counts_where_all_tasks_say_the_same() -> None:
    steps = np.tile(STATES[:4], (6, 1))
    number = np.arange(6) % 2
    parts = tuple(STATES[[n]] for n in number)
    for tasks in (number, np.zeros(6, np.int64)):
        encoded = Encoded(steps, STATES[number], np.arange(0, 25, 4), parts)
        assert calibrate(encoded, np.ones(6), tasks).support_floor < 0.99


@pytest.mark.parametrize(("said", "margin"), [(0.0, 0.1), (0.55, 0.025), (0.7, 0.0)])
def test_ends_that_say_what_the_goal_says_are_evidence_all_the_same(said: float, margin: float) -> None:
    """Ends of successes are .6 from those of other tasks, and `said` from the goal."""
    tasks = np.repeat(np.arange(3), 5)
    end = np.sqrt(1.0 - 0.6 - said**2) * STATES[tasks] if said < 0.63 else 0.0 * STATES[tasks]
    end = end + np.sqrt(0.6) * STATES[5] + said * STATES[10 + tasks]
    end = (end / np.linalg.norm(end, axis=1, keepdims=True)).astype(np.float32)
    encoded = Encoded(end, STATES[10 + tasks], np.arange(16), tuple(STATES[[10 + t]] for t in tasks))
    near = float(end[0] @ end[-1]) - float(end[0] @ STATES[10])
    expected = float(np.clip(0.5 * near, 0.0, 0.1))
    assert calibrate(encoded, np.ones(15), tasks).echo == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(margin, abs=1e-3)
    # Nobody knows where ends belong if nothing succeeded.
    assert calibrate(encoded, np.zeros(15), tasks).echo == 0.1


def test_goal_similarity_is_scaled_by_successes_against_failures() -> None:
    cosines = np.array([0.2, 0.3, 0.6, 0.7])
    last = np.sqrt(1 - cosines[:, None] ** 2) * STATES[0] + cosines[:, None] * GOAL
    encoded = Encoded(
        last.astype(np.float32), np.tile(GOAL, (4, 1)), np.arange(5), tuple(GOAL[None] for _ in range(4))
    )
    tasks = np.zeros(4, np.int64)
    known = calibrate(encoded, np.array([0.0, 0.0, 1.0, 1.0]), tasks)
    assert known.goal_mid == pytest.approx(0.45)
    assert known.goal_match(np.array([0.25]))[0] < 0.2
    assert known.goal_match(np.array([0.65]))[0] > 0.8
    # Without any outcome the similarities themselves say what is near and far.
    unknown = calibrate(encoded, np.full(4, np.nan), tasks)
    assert 0.3 < unknown.goal_mid < 0.6
    assert unknown.goal_match(np.array([0.2]))[0] < 0.5 < unknown.goal_match(np.array([0.7]))[0]


# --- scores by hand ---


def test_the_remembered_way_earns_all_and_its_parts_earn_parts(scorer: Scorer) -> None:
    potential = scorer.score(rollout(0, 1, 2, 3))[0].potential
    assert potential[-1] == 1.0
    assert (np.diff(potential) > 0.0).all()
    assert utility(scorer, 5, 6, 7) == 1.0
    assert utility(scorer, 0, 4) < 0.1


def test_which_way_it_was_compared_with(scorer: Scorer) -> None:
    for states, name in (((0, 1, 2, 3), "0"), ((5, 6, 7), "5")):
        score = scorer.score(rollout(*states))[0]
        assert scorer.graph.texts[scorer.graph.paths[score.way].nodes[0]] == name
        assert score.instrumental[-1] == pytest.approx(1.0)
        assert score.confidence == pytest.approx(1.0, abs=1e-3)


def test_both_parts_are_needed(scorer: Scorer) -> None:
    """3 ends every success, but alone it is not the way; the way without its end does not end well."""
    end = scorer.score(rollout(3))[0]
    assert end.terminal[-1] > 0.7
    assert end.potential[-1] < 0.3
    wrong_end = scorer.score(rollout(0, 1, 2, 4))[0]
    assert wrong_end.instrumental[-1] > 0.5
    assert wrong_end.potential[-1] < 0.3


def test_another_goal_and_an_empty_memory_earn_next_to_nothing(scorer: Scorer) -> None:
    assert utility(scorer, 0, 1, 2, 3, goal=OTHER_GOAL) < 0.05
    assert utility(scorer, 0, 1, 2, 3, goal=np.zeros(DIM, np.float32)) < 0.05
    empty = scorer_of([])
    score = empty.score(rollout(0, 1))[0]
    assert score.way == -1
    assert score.potential.max() < 0.01
    assert score.support.max() == 0.0


def test_far_from_everything_support_and_score_are_near_zero(scorer: Scorer) -> None:
    score = scorer.score(rollout(9, 10, 11))[0]
    assert score.support.max() < 0.05
    assert score.potential.max() < 0.01
    assert not score.counted.any()


def test_restating_the_goal_is_no_evidence() -> None:
    """15 says the goal word for word; even where ways end with it, it earns nothing."""
    echoing = scorer_of([([0, 1, 15], 1.0)] * 5)
    assert not echoing.evidence(rollout(0, 1, 15))[0][2]
    assert utility(echoing, 0, 1, 15) <= utility(echoing, 0, 1)
    plain = scorer_of([([0, 1, 2], 1.0)] * 5)  # control
    assert utility(plain, 0, 1, 2) > utility(plain, 0, 1)


def test_one_success_where_others_fail_sets_no_standard() -> None:
    """Six episodes end badly at 4 and one, by luck or a wrong label, well; what is done often counts."""

    def scorer_with(successes: int) -> Scorer:
        odd = [([0, 8, 4], 1.0)] * successes + [([0, 8, 4], 0.0)] * 6
        return scorer_of([([0, 1, 2, 3], 1.0)] * 6 + odd)

    fluke, often = scorer_with(1), scorer_with(30)
    assert utility(fluke, 0, 8, 4) < 0.1
    assert utility(fluke, 0, 1, 2, 3) > 0.9
    assert utility(often, 0, 8, 4) > 0.6


def test_a_place_where_a_few_fail_is_no_dead_end() -> None:
    """A quarter of those that end at 3 are called failures: what ends there is still worth what it was."""
    mixed = scorer_of([([0, 1, 2, 3], 1.0)] * 6 + [([0, 1, 2, 3], 0.0)] * 2 + [([0, 5, 4], 0.0)] * 6)
    assert utility(mixed, 0, 1, 2, 3) > 0.8
    assert utility(mixed, 0, 5, 4) < 0.05  # control


def test_few_episodes_let_the_words_of_a_new_goal_speak() -> None:
    """A step near the words of a goal that nobody was after yet is worth more than one far from them."""
    new = STATES[9]
    near = replace(rollout(1, 2, goal=new), steps=np.stack([STATES[1], 0.8 * STATES[2] + 0.6 * new]))
    far = rollout(1, 2, goal=new)

    def total(episodes: int, told: Encoded) -> float:
        known = scorer_of([([0, 1, 2, 3], 1.0)] * 2, Calibration(goal_mid=0.3, goal_spread=0.1))
        known.graph.episodes = episodes
        return float(known.score(told)[0].closing[-1])

    assert total(2, near) > 2.0 * total(2, far)
    ratio = [total(n, far) / total(100, far) for n in (2, 50, 100, 200)]
    assert ratio == sorted(ratio)
    assert ratio[0] < 0.5
    assert ratio[2] == ratio[3] == 1.0


def test_who_did_all_that_a_success_does_made_no_bad_end() -> None:
    """Most who came to 3 by another way had failed there, so 3 alone is no good end."""
    known = scorer_of([([0, 1, 2, 3], 1.0)] * 3 + [([4, 3], 0.0)] * 5)

    def total(*states: int) -> float:
        return float(known.score(replace(rollout(*states), ended=(True,)))[0].potential[-1])

    assert total(4, 3) < 0.05 < 0.3 < total(0, 1, 2, 3)


def test_a_step_nearest_to_another_memory_is_a_landmark_only_where_likeness_is_enough() -> None:
    """5 is told almost like 1, and was also seen by itself."""
    almost = STATES.copy()
    almost[5] = 0.9 * STATES[1] + np.sqrt(1 - 0.9**2) * STATES[5]
    graph = ValueGraph(DIM, 0, FitConfig(device="cpu"))
    for states, outcome in [([0, 1, 2, 3], 1.0)] * 5 + [([0, 5, 4], 0.0)] * 5:
        keys = graph.keys(None, almost[states], np.broadcast_to(GOAL, (len(states), DIM)))
        memories = [Memory(key, str(s)) for key, s in zip(keys, states, strict=True)]
        graph.write(
            [Visit(GOAL, "goal", memories, discounted_credit(outcome, len(states), 0.9), outcome, True)]
        )
    told = replace(rollout(0, 5, 2, 3), steps=almost[[0, 5, 2, 3]])
    strict, alike = (
        Scorer(graph, None, Calibration(saturation=0.8, exclusive=choice)).score(told)[0].instrumental[-1]
        for choice in (True, False)
    )
    assert strict < alike - 0.05


def test_nothing_that_follows_a_bad_end_makes_it_better(scorer: Scorer) -> None:
    """The environment ended at 4, where episodes end badly; repeats and strangers after it change nothing."""

    def ended(*states: int) -> float:
        return float(scorer.score(replace(rollout(*states), ended=(True,)))[0].potential[-1])

    lost = ended(0, 1, 2, 4)
    assert lost < 0.1
    for idle in (12, 2, 4, 15):
        assert ended(0, 1, 2, 4, idle) <= lost + 1e-9
    assert ended(0, 1, 2, 3) > 0.9  # control: a good end is one


def test_an_end_where_successes_only_pass_is_no_good_end() -> None:
    """Many pass 2 on their way to 3; an episode that the environment ended there has not arrived."""
    known = scorer_of([([0, 1, 2, 3], 1.0)] * 5 + [([0, 4], 0.0)] * 5)

    def total(*states: int, ended: bool) -> float:
        return float(known.score(replace(rollout(*states), ended=(ended,)))[0].potential[-1])

    assert total(0, 1, 2, ended=True) < 0.05 < total(0, 1, 2, ended=False)
    assert total(0, 1, 2, 12, 13, ended=True) < 0.05
    assert total(0, 1, 2, 3, ended=True) == total(0, 1, 2, 3, ended=False) > 0.9


@given(st.lists(st.integers(0, 11), min_size=1, max_size=10), st.data())
@settings(deadline=None, max_examples=60)
def test_repeats_and_strangers_never_raise_a_score(
    scorer: Scorer, states: list[int], data: st.DataObject
) -> None:
    honest = utility(scorer, *states)
    at = data.draw(st.integers(0, len(states)))
    idle = data.draw(st.lists(st.sampled_from([*states[:at], 12, 13]), min_size=1, max_size=6))
    assert utility(scorer, *states[:at], *idle, *states[at:]) <= honest + 1e-6


@given(st.permutations([0, 1, 2, 3]))
@settings(deadline=None)
def test_the_way_in_another_order_earns_less(scorer: Scorer, order: list[int]) -> None:
    if order != [0, 1, 2, 3]:
        assert utility(scorer, *order) < utility(scorer, 0, 1, 2, 3)


def test_control_a_sum_of_retrieved_values_pays_for_all_of_that(scorer: Scorer) -> None:
    def naive(*states: int) -> float:
        keys = scorer.graph.keys(None, STATES[list(states)], np.tile(GOAL, (len(states), 1)))
        return float(scorer.graph.read(scorer.graph.neighbours(keys)).sum())

    assert naive(0, 1, 1, 1, 1) > naive(0, 1, 2, 3)  # a loop beats the way
    assert naive(3, 2, 1, 0) == pytest.approx(naive(0, 1, 2, 3))  # any order is as good
    assert naive(3, 3) > naive(3)


def test_a_rollout_is_scored_by_itself(scorer: Scorer) -> None:
    rollouts = [rollout(0, 1, 2, 3), rollout(4), rollout(0, 9, 1, goal=OTHER_GOAL), rollout(5, 6)]
    batch = scorer.score(together(rollouts))
    for one, among in zip(rollouts, batch, strict=True):
        (alone,) = scorer.score(one)
        for a, b in zip(alone, among, strict=True):
            assert np.array_equal(a, b)


def test_a_scorer_reads_what_was_written_after_it_was_refreshed() -> None:
    scorer = scorer_of([([0, 1], 1.0)] * 3)
    assert utility(scorer, 5, 6, 7) < 0.1
    later = scorer_of([([0, 1], 1.0)] * 3 + [([5, 6, 7], 1.0)] * 3)
    scorer.graph = later.graph
    scorer.refresh()
    assert utility(scorer, 5, 6, 7) == utility(later, 5, 6, 7) > 0.9


def test_scores_are_columns_of_the_rollouts(scorer: Scorer) -> None:
    rollouts = [rollout(0, 1, 2), rollout(0, 4, 9, 9)]
    each = scorer.score(together(rollouts))
    scores = collect(["a", "b"], each)
    assert isinstance(scores, Scores)
    assert len(scores) == 2
    assert scores.episode_ids == ("a", "b")
    for i, one in enumerate(each):
        assert scores.total[i] == one.potential[-1]
        assert scores.terminal[i] == one.terminal[-1]
        assert scores.instrumental[i] == one.instrumental[-1]
        assert scores.support[i] == one.support.mean()
        assert np.array_equal(scores.potentials[i], one.potential)
        assert scores.step_rewards[i].sum() == pytest.approx(scores.total[i], abs=1e-12)
        assert np.cumsum(scores.step_rewards[i]) == pytest.approx(one.potential, abs=1e-12)
