"""Explanations add up to the score they explain, and recalled ways lead where they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from valuegraph import Episode, RewardModel, Step
from valuegraph.explain import Explanation, Recall


@pytest.fixture(scope="module")
def success(heldout_episodes) -> Episode:
    """A solved game of some length, never seen by the model."""
    return max((e for e in heldout_episodes if e.outcome == 1.0), key=lambda e: len(e.steps))


@pytest.fixture(scope="module")
def explained(small_model, heldout_episodes) -> list[tuple[Episode, Explanation]]:
    return [(episode, small_model.explain(episode)) for episode in heldout_episodes[::3]]


def test_an_explanation_is_of_the_score(small_model, explained) -> None:
    scores = small_model.score([episode for episode, _ in explained])
    for i, (episode, why) in enumerate(explained):
        assert why.episode_id == episode.episode_id
        for name in ("total", "terminal", "instrumental", "support"):
            assert getattr(why, name) == pytest.approx(getattr(scores, name)[i], abs=1e-12)
        assert why.step_rewards == pytest.approx(scores.step_rewards[i], abs=1e-12)
        assert sum(why.step_rewards) == pytest.approx(why.total, abs=1e-9)
        assert len(why.steps) == len(why.counted) == len(episode.steps)


def test_landmarks_are_met_in_order_by_steps_that_count(explained) -> None:
    met = 0
    for _, why in explained:
        assert sum(mark.weight for mark in why.landmarks) == pytest.approx(1.0)
        steps = [mark.met_at for mark in why.landmarks if mark.met_at is not None]
        assert steps == sorted(set(steps))
        assert all(why.counted[t] for t in steps)
        met += len(steps)
    assert met > 0


def test_a_success_meets_more_of_the_way_than_a_failure(small_model, heldout_episodes) -> None:
    def weight_met(episode: Episode) -> float:
        return sum(m.weight for m in small_model.explain(episode).landmarks if m.met_at is not None)

    won = [weight_met(e) for e in heldout_episodes if e.outcome == 1.0]
    lost = [weight_met(e) for e in heldout_episodes if e.outcome == 0.0]
    assert np.mean(won) > np.mean(lost) + 0.3


def test_the_english_says_what_the_numbers_say(small_model, success) -> None:
    why = small_model.explain(success)
    text = str(why)
    assert f"Rollout {success.episode_id} scores {why.total:.2f}" in text
    assert f"met {sum(m.met_at is not None for m in why.landmarks)} of {len(why.landmarks)} landmarks" in text
    printed = [float(x) for x in re.findall(r"^  ([+-]\d\.\d{3})  ", text, re.MULTILINE)]
    *rewards, total = printed
    assert len(rewards) == len(success.steps)
    assert total == pytest.approx(why.total, abs=1e-3)
    assert sum(rewards) == pytest.approx(total, abs=0.0011 * len(rewards))
    assert "far from everything" not in text
    assert "does not know this goal" not in text
    # One line each for the rollout, the way, its landmarks, what was left out of them, the heading, the steps
    # and the sum.
    left_out = any(m.met_at is None for m in why.landmarks)
    assert len(text.splitlines()) == 4 + len(why.landmarks) + left_out + len(why.steps)
    assert max(map(len, text.splitlines())) < 200


def test_what_is_far_and_what_is_unknown_is_said(small_model) -> None:
    alien = Episode(
        "alien", (Step("lorem ipsum dolor sit amet", "consectetur"),) * 2, goal="water the plants"
    )
    text = str(small_model.explain(alien))
    assert "far from everything remembered" in text
    assert "does not know this goal" in text
    assert text.count("(no new evidence)") == 2


def test_a_loop_is_shown_to_bring_no_new_evidence(small_model, success) -> None:
    looped = Episode("loop", success.steps[:2] + (success.steps[1],) * 3, goal=success.goal)
    why = small_model.explain(looped)
    assert why.counted[2:] == (False,) * 3
    assert max(why.step_rewards[2:]) <= 1e-6
    assert str(why).count("(no new evidence)") >= 3


def test_without_a_remembered_success_there_is_no_way(tmp_path) -> None:
    from valuegraph import ArrayEncoder

    model = RewardModel.create(ArrayEncoder(2))
    model.update([Episode("lost", (Step((0.0, 1.0)), Step((1.0, 0.0))), outcome=0.0)])
    why = model.explain(Episode("r", (Step((0.0, 1.0)),)))
    assert why.landmarks == ()
    assert why.goal is None
    assert "No successful way is remembered" in str(why)


# --- recall ---


def test_recall_from_the_middle_of_a_game_leads_to_its_end(small_model, success) -> None:
    middle = success.steps[len(success.steps) // 2]
    way = small_model.recall(middle.observation, success.goal, action=middle.action)
    assert isinstance(way, Recall)
    assert way.arrived
    assert way.support > 0.5
    assert 1 < len(way) == len(way.texts) == len(way.values) <= 32
    assert len(set(way.nodes)) == len(way.nodes)
    graph = small_model.graph
    assert graph.edges.weights_of(way.nodes[:-1], way.nodes[1:]).min() > 0.0
    assert graph.column("won")[way.nodes[-1]] > 0.0
    assert way.values == pytest.approx([graph.values[n] for n in way.nodes])
    assert way.values[-1] > way.values[0]
    goals = {graph.goals.texts[graph.goal_of[n]] for n in way.nodes}
    assert goals == {success.goal}
    assert "(reaches the goal)" in str(way)


def test_a_recall_is_no_longer_than_asked_for(small_model, success) -> None:
    first = success.steps[0]
    whole = small_model.recall(first.observation, success.goal, action=first.action)
    assert len(whole) > 2
    part = small_model.recall(first.observation, success.goal, action=first.action, steps=2)
    assert part.nodes == whole.nodes[:2]
    assert not part.arrived
    assert "(no known way goes on from here)" in str(part)


def test_nothing_is_recalled_of_what_was_never_seen(small_model) -> None:
    way = small_model.recall("lorem ipsum dolor sit amet", goal="water the plants")
    assert len(way) == 0
    assert not way.arrived
    assert way.support < 1e-3
    assert str(way) == "Nothing like this is remembered."
