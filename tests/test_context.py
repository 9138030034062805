"""What the learner reads: embeddings, repeats, decayed context, progress along the clauses of a goal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from valuegraph.context import (
    Encoded,
    clause_progress,
    clauses,
    decayed_context,
    encode_episodes,
    first_saying,
    learner_inputs,
    learner_width,
    misdirected,
    own_width,
    repeated_steps,
)
from valuegraph.encoders import ArrayEncoder
from valuegraph.episodes import Episode, Step

DIM = 16


def unit(rng: np.random.Generator, n: int, dim: int = DIM) -> np.ndarray:
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def episodes_of(lengths: list[int], seed: int = 0, stages: int = 3) -> Encoded:
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    parts = tuple(unit(rng, stages) for _ in lengths)
    return Encoded(unit(rng, int(starts[-1])), unit(rng, len(lengths)), starts, parts)


def replace_rows(encoded: Encoded, rows: np.ndarray) -> Encoded:
    return Encoded(rows, encoded.goals, encoded.starts, encoded.clauses)


@pytest.mark.parametrize(
    ("goal", "parts"),
    [
        ("Find the key.", ["Find the key."]),
        ("Find the key. Open the door!\n\nLeave?", ["Find the key.", "Open the door!", "Leave?"]),
        ("Go. A. Then leave the house", ["Then leave the house"]),
        ("", [""]),
        ("...", ["..."]),
        ("3.5 litres of water", ["3.5 litres of water"]),
    ],
)
def test_clauses_are_the_sentences_of_a_goal(goal: str, parts: list[str]) -> None:
    assert clauses(goal) == parts


def test_episodes_become_rows_in_order() -> None:
    encoder = ArrayEncoder(2, features=8)
    episodes = [
        Episode("a", (Step((0.0, 1.0)), Step((2.0, 0.0))), goal="go north. then go east."),
        Episode("b", (Step((0.0, 1.0)),), goal=None),
        Episode("c", (Step((1.0, 1.0)), Step((0.0, 1.0)), Step((3.0, 3.0))), goal="stay"),
    ]
    encoded = encode_episodes(episodes, encoder)
    assert encoded.starts.tolist() == [0, 2, 3, 6]
    assert encoded.episode_of.tolist() == [0, 0, 1, 2, 2, 2]
    for b, episode in enumerate(episodes):
        assert np.array_equal(encoded.steps[encoded.rows(b)], encoder.encode_steps(episode.steps))
        assert np.array_equal(encoded.goals[b], encoder.encode_goals([episode.goal])[0])
        one = encoded.select(b)
        assert one.starts.tolist() == [0, len(episode.steps)]
        assert np.array_equal(one.steps, encoded.steps[encoded.rows(b)])
        assert np.array_equal(one.goals, encoded.goals[b : b + 1])
        assert one.clauses == encoded.clauses[b : b + 1]
    assert not encoded.goals[1].any()
    expected = encoder.encode_goals(["go north.", "then go east."])
    assert np.array_equal(encoded.clauses[0], expected)
    assert [len(parts) for parts in encoded.clauses] == [2, 0, 1]


def test_only_what_was_said_before_in_the_same_episode_is_a_repeat() -> None:
    rng = np.random.default_rng(0)
    a, b, c = unit(rng, 3)
    near = a + 0.03 * b  # cosine about .9996
    near /= np.linalg.norm(near)
    encoded = replace_rows(episodes_of([4, 3]), np.stack([a, b, a, near, a, b, c]))
    assert repeated_steps(encoded).tolist() == [False, False, True, True, False, False, False]
    assert repeated_steps(encoded, threshold=0.9999).tolist() == [False, False, True, False] + [False] * 3
    assert first_saying(encoded).tolist() == [0, 1, 0, 0, 0, 1, 2]


def test_one_more_of_what_was_collected_is_no_repeat(text_encoder) -> None:
    bags = ["1 stone, 1 wood pickaxe", "2 stone, 1 wood pickaxe", "2 stone, 1 wood pickaxe"]
    said = [f"You collect stone. Near you: coal, iron, stone, tree, water. You carry {bag}." for bag in bags]
    steps = tuple(Step(text, "collect stone") for text in said)
    encoded = encode_episodes([Episode("e", steps, goal="place furnace", outcome=1.0)], text_encoder)
    assert repeated_steps(encoded).tolist() == [False, False, True]
    assert repeated_steps(encoded, threshold=0.995).tolist() == [False, True, True]  # control


def test_the_context_is_its_recursion() -> None:
    encoded = episodes_of([5, 1, 3, 7])
    rng = np.random.default_rng(1)
    counted = rng.random(len(encoded.steps)) < 0.6
    context = decayed_context(encoded, counted, decay=0.7)
    for b in range(4):
        memory = np.zeros(DIM)
        for t in range(encoded.rows(b).start, encoded.rows(b).stop):
            current = 0.7 * memory + encoded.steps[t]
            np.testing.assert_allclose(context[t], current / np.linalg.norm(current), atol=1e-6)
            memory = current if counted[t] else memory


def test_without_decay_the_context_is_the_mean_of_the_prefix_and_with_all_of_it_the_step() -> None:
    encoded = episodes_of([6])
    everything = np.ones(6, np.bool_)
    np.testing.assert_allclose(decayed_context(encoded, everything, decay=0.0), encoded.steps, atol=1e-6)
    sums = np.cumsum(encoded.steps, axis=0)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(decayed_context(encoded, everything, decay=1.0), expected, atol=1e-6)


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_what_the_learner_reads_is_causal(changed: int) -> None:
    encoded = episodes_of([6, 4])
    counted = np.array([True, True, False, True, True, True] + [True] * 4)
    rows = encoded.steps.copy()
    rows[changed] = unit(np.random.default_rng(9), 1)[0]
    before, after = (learner_inputs(e, counted) for e in (encoded, replace_rows(encoded, rows)))
    assert before.shape == (10, learner_width(DIM))
    assert before.dtype == np.float32
    assert np.isfinite(before).all()
    assert np.array_equal(before[:changed], after[:changed])
    assert np.array_equal(before[6:], after[6:])  # another episode
    # Control: the step itself and what follows it do change.
    assert (np.abs(before[changed:6] - after[changed:6]).max(axis=1) > 1e-4).all()


def test_a_step_that_does_not_count_leaves_no_trace() -> None:
    encoded = episodes_of([4])
    counted = np.array([True, False, True, True])
    rows = encoded.steps.copy()
    rows[1] = unit(np.random.default_rng(9), 1)[0]
    before, after = (learner_inputs(e, counted) for e in (encoded, replace_rows(encoded, rows)))
    assert np.array_equal(before[2:], after[2:])
    assert not np.array_equal(before[1], after[1])
    # Control: had it counted, it would have.
    before, after = (learner_inputs(e, np.ones(4, np.bool_)) for e in (encoded, replace_rows(encoded, rows)))
    assert not np.array_equal(before[2:], after[2:])


def in_order(order: list[int], repeats: int = 1) -> np.ndarray:
    """Clause progress of steps that say exactly the clauses of a goal of three, in this order."""
    stages = np.eye(DIM, dtype=np.float32)[:3]
    order = order * repeats
    goals = stages.sum(axis=0, keepdims=True) / np.sqrt(3)
    encoded = Encoded(stages[order], goals.astype(np.float32), np.array([0, len(order)]), (stages,))
    return clause_progress(encoded, ~repeated_steps(encoded)) / 3.0


def test_progress_along_the_clauses_needs_their_order() -> None:
    np.testing.assert_allclose(in_order([0, 1, 2])[:, 0], [1 / 3, 2 / 3, 1.0], atol=1e-6)
    np.testing.assert_allclose(in_order([2, 1, 0])[:, 0], [1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(in_order([1, 2])[:, 0], [1 / 3, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(in_order([0], repeats=6)[:, 0], np.full(6, 1 / 3), atol=1e-6)
    # The mean of the best similarities does not ask for an order: that is why it is another column.
    np.testing.assert_allclose(in_order([2, 1, 0])[:, 3], [1 / 3, 2 / 3, 1.0], atol=1e-6)


def test_without_a_goal_there_is_no_progress_and_no_cosine() -> None:
    rng = np.random.default_rng(0)
    empty = np.zeros((0, DIM), np.float32)
    encoded = Encoded(unit(rng, 3), np.zeros((1, DIM), np.float32), np.array([0, 3]), (empty,))
    inputs = learner_inputs(encoded, np.ones(3, np.bool_))
    assert not inputs[:, DIM : 2 * DIM].any()
    assert not inputs[:, 2 * DIM].any()  # the cosine
    assert not inputs[:, own_width(DIM) + DIM :].any()
    assert inputs[:, :DIM].any()


def test_a_misdirected_copy_did_the_same_for_another_goal() -> None:
    encoded = episodes_of([3, 5, 2, 4])
    goals = encoded.goals.copy()
    goals[1], goals[3] = goals[0], 0.0
    encoded = replace(encoded, goals=goals)
    copies, sources = misdirected(encoded, np.arange(4), np.random.default_rng(0))
    assert sources.tolist() == [0, 1, 2]  # the last one has no goal, and gives none away
    for i, b in enumerate(sources.tolist()):
        np.testing.assert_array_equal(copies.steps[copies.rows(i)], encoded.steps[encoded.rows(b)])
        assert not np.array_equal(copies.goals[i], encoded.goals[b])
        given = next(j for j in range(3) if np.array_equal(copies.goals[i], encoded.goals[j]))
        assert copies.clauses[i] is encoded.clauses[given] or given < 2
    alone, none = misdirected(
        replace(encoded, goals=np.tile(goals[0], (4, 1))), np.arange(4), np.random.default_rng(0)
    )
    assert len(none) == len(alone.goals) == len(alone.steps) == 0
