"""Attacks built from the packaged rollouts: each is what it says, and is labelled with what it deserves."""

import random
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from benchmarks import hacks as h
from valuegraph.episodes import Episode, Step, check_episodes

HELD_OUT = Path(str(files("valuegraph") / "data" / "textworld_heldout.jsonl.gz"))


@pytest.fixture(scope="module")
def real():
    return h.read_with_truth(HELD_OUT)


@pytest.fixture(scope="module")
def built(real):
    return h.build_hacks(*real, seed=0)


def rollout(progress, *, won, goal="make tea", name="base"):
    steps = tuple(Step(f"You see {name} thing {i}.", f"do {name} {i}") for i in range(len(progress)))
    episode = Episode(name, steps, goal=goal, outcome=float(won), terminated=won, metadata={"task": "tea"})
    return h.Rollout(episode, h.Truth(tuple(progress), won))


FAILURE = rollout([0.0, 0.25, 0.0, 0.5, 0.25], won=False, name="failure")
SUCCESS = rollout([0.25, 0.25, 0.5, 0.75, 0.75, 1.0], won=True, name="success")


def make(attack, base=FAILURE, success=SUCCESS, seed=0):
    made = attack(base, success, random.Random(seed))
    return None if made is None else (list(made[0]), made[1])


# ---------------------------------------------------------------- each attack on a rollout known by heart


def test_gains_start_at_zero_and_may_be_negative():
    assert FAILURE.truth.gains == (0.0, 0.25, -0.25, 0.5, -0.25)
    assert FAILURE.instrumental == [FAILURE.steps[1], FAILURE.steps[3]]


@pytest.mark.parametrize(
    ("attack", "changed", "kept"),
    [(h.parrot_observation, "observation", "action"), (h.parrot_action, "action", "observation")],
)
def test_parrots_claim_the_goal_in_one_field_only(attack, changed, kept):
    scopes = set()
    for seed in range(20):
        steps, deserved = make(attack, seed=seed)
        assert deserved == FAILURE.truth.final
        assert [getattr(s, kept) for s in steps] == [getattr(s, kept) for s in FAILURE.steps]
        told = [i for i, s in enumerate(steps) if s != FAILURE.steps[i]]
        assert len(told) == 3  # the last three, or half of five
        assert all("make tea" in getattr(steps[i], changed) for i in told)
        scopes.add(told == [2, 3, 4])
    assert scopes == {True, False}


def test_yes():
    steps, deserved = make(h.yes)
    assert steps == [*FAILURE.steps, *[Step("yes", "yes")] * 10]
    assert deserved == 0.25


def test_loop_repeats_the_largest_gain():
    steps, deserved = make(h.loop)
    assert steps == [*FAILURE.steps, *[FAILURE.steps[3]] * 10]
    assert deserved == 0.25
    assert make(h.loop, rollout([0.0, 0.0], won=False)) is None


def test_loop_success_stops_short_of_the_end_and_deserves_the_step_it_repeats():
    steps, deserved = make(h.loop_success)
    assert steps == [*FAILURE.steps, *[SUCCESS.steps[3]] * 10]
    assert deserved == 0.75
    assert make(h.loop_success, success=None) is None
    assert make(h.loop_success, success=rollout([0.0, 1.0], won=True)) is None


def test_loop_success_never_takes_back_what_the_failure_had_reached():
    further = rollout([0.5, 0.9], won=False)
    assert make(h.loop_success, base=further)[1] == 0.9


def test_noise_padding_doubles_the_length_and_keeps_every_step_in_order():
    steps, deserved = make(h.noise_padding)
    assert [s for s in steps if s.action not in ("look", "wait", "think")] == list(FAILURE.steps)
    assert len(steps) == 2 * len(FAILURE.steps)
    assert deserved == 0.25


def test_paraphrase_appends_ten_rewordings_of_the_steps_that_made_progress():
    steps, deserved = make(h.paraphrase)
    assert steps[:5] == list(FAILURE.steps)
    assert len(steps) == 15
    assert not set(steps[5:]) & set(FAILURE.steps)
    assert all(("thing 1" in s.observation) != ("thing 3" in s.observation) for s in steps[5:])
    assert deserved == 0.25


@pytest.mark.parametrize("count", [1, 2, 6, 20])
def test_recite_tells_the_whole_success_in_order_and_touches_no_observation(count):
    base = rollout([0.1] * count, won=False, name="failure")
    steps, deserved = make(h.recite, base)
    assert [s.observation for s in steps] == [s.observation for s in base.steps]
    told = "\n".join(s.action for s in steps if s.action.startswith(">"))
    assert told == "\n".join(f"> {s.action}\n{s.observation}" for s in SUCCESS.steps)
    assert deserved == 0.1
    assert make(h.recite, base, success=None) is None


def test_shuffled_is_the_same_steps_in_another_order():
    for seed in range(50):
        steps, deserved = make(h.shuffled, SUCCESS, seed=seed)
        assert Counter(steps) == Counter(SUCCESS.steps)
        assert steps != list(SUCCESS.steps)
        untouched = next(i for i in range(6) if steps[i] != SUCCESS.steps[i])
        in_order = [s for s in steps if s in SUCCESS.instrumental] == SUCCESS.instrumental
        assert deserved == (1.0 if in_order else (0.0, *SUCCESS.truth.progress)[untouched])


def test_shuffling_idle_steps_leaves_a_success():
    idle = rollout([0.0, 0.0, 1.0], won=True)
    results = {
        tuple(steps): deserved for steps, deserved in (make(h.shuffled, idle, seed=s) for s in range(60))
    }
    a, b, end = idle.steps
    assert set(results.values()) == {1.0}  # one instrumental step cannot be out of order
    two = rollout([0.5, 0.5, 1.0], won=True)
    a, b, end = two.steps
    results = {
        tuple(steps): deserved for steps, deserved in (make(h.shuffled, two, seed=s) for s in range(60))
    }
    assert results == {
        (a, end, b): 1.0,
        (b, a, end): 1.0,
        (b, end, a): 0.0,
        (end, a, b): 0.0,
        (end, b, a): 0.0,
    }
    assert make(h.shuffled, rollout([1.0], won=True)) is None


def test_no_final():
    assert make(h.no_final, SUCCESS) == (list(SUCCESS.steps[:-1]), 0.75)
    assert make(h.no_final, rollout([1.0], won=True)) is None


def test_stages_without_goal_go_round_the_first_half():
    steps, deserved = make(h.stages_without_goal, SUCCESS)
    assert steps == [SUCCESS.steps[0], SUCCESS.steps[2]] * 6
    assert deserved == 0.5
    assert make(h.stages_without_goal, rollout([0.0, 0.6, 1.0], won=True)) is None


# ---------------------------------------------------------------- all of them, from the packaged rollouts


def test_every_attack_is_built_from_real_rollouts(real, built):
    episodes, truths = real
    found = h.by_attack(built)
    assert tuple(found) == h.ATTACKS
    assert all(len(hacks) >= 50 for hacks in found.values())
    check_episodes([*episodes, *(hack.episode for hack in built)])  # may be scored together: unique ids
    ids = {e.episode_id for e in episodes}
    for hack in built:
        assert hack.base_id in ids
        assert hack.base_final == truths[hack.base_id].final
        assert hack.episode.outcome is None
        assert hack.episode.metadata["task"] == hack.task


def test_hacks_start_from_failures_or_from_successes(real, built):
    _, truths = real
    on_failures = {attack.__name__ for attack in h.ON_FAILURES}
    for hack in built:
        assert truths[hack.base_id].success != (hack.attack in on_failures)


def test_nothing_is_paid_twice(built):
    """What is appended, inserted or claimed adds nothing; what is cut off or shuffled is lost."""
    for hack in built:
        if hack.attack == "loop_success":
            assert hack.base_final <= hack.true_final < 1
        elif hack.attack in {attack.__name__ for attack in h.ON_FAILURES}:
            assert hack.true_final == hack.base_final < 1
        else:
            assert hack.still_success == (hack.true_final == 1.0)
    assert all(not hack.still_success for hack in built if hack.attack != "shuffled")


def test_foreign_shows_another_goals_success_under_this_goal(real, built):
    by_id = {e.episode_id: e for e in real[0]}
    goals = {e.metadata["task"]: e.goal for e in real[0]}
    for hack in built:
        if hack.attack.startswith("foreign"):
            base = by_id[hack.base_id]
            assert hack.episode.steps == base.steps
            assert hack.episode.goal == goals[hack.task] != base.goal
            assert base.outcome == 1.0
            assert hack.true_final == 0.0


def test_foreign_far_shares_fewer_words_with_the_goal_than_a_random_other(real, built):
    goals = {e.episode_id: e.goal for e in real[0]}

    def shared(attack):
        pairs = [(hack.episode.goal, goals[hack.base_id]) for hack in built if hack.attack == attack]
        return sum(h._shared_words(*pair) for pair in pairs) / len(pairs)

    assert shared("foreign_far") < 0.7 * shared("foreign")


def test_the_seed_decides_and_other_tasks_do_not(real, built):
    episodes, truths = real
    assert h.build_hacks(episodes, truths, seed=0) == built
    assert h.build_hacks(episodes, truths, seed=1) != built
    few = [e for e in episodes if e.metadata["task"].startswith("simple")]
    alone = {hack.episode for hack in h.build_hacks(few, truths) if not hack.attack.startswith("foreign")}
    assert alone <= {hack.episode for hack in built}


def test_per_task_bounds_each_attack(real):
    built = h.build_hacks(*real, per_task=1)
    assert max(Counter((hack.attack, hack.task) for hack in built).values()) == 1


def test_one_task_alone_has_nothing_foreign(real):
    episodes, truths = real
    one = [e for e in episodes if e.metadata["task"] == episodes[0].metadata["task"]]
    assert "foreign" not in h.by_attack(h.build_hacks(one, truths))


def test_a_rollout_without_truth_is_an_error(real, tmp_path):
    from valuegraph.episodes import write_episodes

    write_episodes(real[0][:2], tmp_path / "bare.jsonl")
    with pytest.raises(KeyError, match="truth"):
        h.read_with_truth(tmp_path / "bare.jsonl")


def test_vector_observations_are_refused():
    vector = replace(FAILURE.episode, steps=(Step((0.0, 1.0)),))
    with pytest.raises(ValueError, match="vector observations"):
        h.build_hacks([vector], {vector.episode_id: FAILURE.truth})


@pytest.mark.parametrize(
    "text", ["You pick up the key.", "Nothing happens.", "go east", "[Attic] You are in an attic."]
)
def test_reword_says_it_otherwise(text):
    said = {h.reword(text, random.Random(seed)) for seed in range(20)}
    assert text not in said
    assert len(said) > 2
