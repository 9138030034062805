"""From episodes to arrays: embeddings, which steps count as evidence, and what the learner reads of them.

All steps of all episodes lie in one array; episode b owns the rows starts[b] .. starts[b + 1] - 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valuegraph.encoders import Encoder
from valuegraph.episodes import Episode, EpisodeError

__all__ = [
    "Encoded",
    "clause_progress",
    "clauses",
    "decayed_context",
    "encode_episodes",
    "first_saying",
    "learner_inputs",
    "learner_width",
    "misdirected",
    "own_width",
    "repeated_steps",
]

Floats = NDArray[np.float32]

DECAY = 0.8
"""Decay per step of the causal context: about five steps back still weigh a third."""
REPEAT = 0.998
"""Cosine from which a step says what an earlier step of the rollout has said already. "You carry 2 stone" is
.997 to "You carry 1 stone": a number hardly turns an embedding, but one stone more is no repetition."""
_OTHER_GOAL = 0.9  # cosine of two goals below which what serves one need not serve the other
_CLAUSE = re.compile(r"(?<=[.!?;])\s+|\n+")
_CLAUSE_FEATURES = 6


@dataclass(frozen=True, slots=True)
class Encoded:
    """Episodes as embeddings."""

    steps: Floats
    """(N, d) unit rows phi."""
    goals: Floats
    """(B, d) unit rows; zero where an episode has no goal."""
    starts: NDArray[np.int64]
    """(B + 1,) first row of each episode, then N."""
    clauses: tuple[Floats, ...]
    """Embeddings of the clauses of each episode's goal; empty without a goal."""
    ended: tuple[bool, ...] = ()
    """Whether the environment ended each episode, rather than a time limit; none did where it is empty."""

    @property
    def episode_of(self) -> NDArray[np.int64]:
        """(N,) the episode each step belongs to."""
        return np.repeat(np.arange(len(self.goals)), np.diff(self.starts))

    @property
    def places(self) -> NDArray[np.int64]:
        """(N,) the number of each step in its episode, from zero."""
        return np.arange(len(self.steps)) - self.starts[self.episode_of]

    def rows(self, episode: int) -> slice:
        """The rows of one episode."""
        return slice(int(self.starts[episode]), int(self.starts[episode + 1]))

    def select(self, first: int, stop: int | None = None) -> Encoded:
        """One episode by itself, or those from the first up to the one before `stop`."""
        stop = first + 1 if stop is None else stop
        starts = self.starts[first : stop + 1]
        return Encoded(
            self.steps[starts[0] : starts[-1]],
            self.goals[first:stop],
            starts - starts[0],
            self.clauses[first:stop],
            self.ended[first:stop],
        )


def clauses(goal: str) -> list[str]:
    """The sentences of a goal: the stages that whoever wrote it named.

    >>> clauses("Boil water. First, find the pot; then fill it.")
    ['Boil water.', 'First, find the pot;', 'then fill it.']
    """
    parts = [part.strip() for part in _CLAUSE.split(goal)]
    return [part for part in parts if len(part) > 3] or [goal]


def encode_episodes(episodes: Sequence[Episode], encoder: Encoder, evidence: str = "step") -> Encoded:
    """Embed every step, goal and goal clause; raises what the encoder raises."""
    try:
        steps = encoder.encode_steps([step for episode in episodes for step in episode.steps], evidence)
    except EpisodeError:
        for episode in episodes:  # once more, one by one, for the name of the first that cannot be read
            try:
                encoder.encode_steps(episode.steps, evidence)
            except EpisodeError as error:
                raise EpisodeError(f"episode {episode.episode_id!r}: {error}") from None
        raise
    goals = encoder.encode_goals([episode.goal for episode in episodes])
    parts = {goal: clauses(goal) for goal in {episode.goal for episode in episodes} if goal is not None}
    texts = sorted({part for group in parts.values() for part in group})
    rows = dict(zip(texts, encoder.encode_goals(texts), strict=True)) if texts else {}
    stacked = {goal: np.stack([rows[part] for part in group]) for goal, group in parts.items()}
    none = np.zeros((0, goals.shape[1]), np.float32)
    return Encoded(
        steps=steps,
        goals=goals,
        starts=np.concatenate([[0], np.cumsum([len(episode.steps) for episode in episodes])]).astype(
            np.int64
        ),
        clauses=tuple(none if e.goal is None else stacked[e.goal] for e in episodes),
        ended=tuple(e.terminated and not e.truncated for e in episodes),
    )


def misdirected(
    encoded: Encoded, episodes: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Encoded, NDArray[np.int64]]:
    """Copies of episodes with the goal of another one: the same deeds, but not what was asked for. With them
    the episode that each was made from; there is none of an episode for whose goal there is no other.
    """
    goals = encoded.goals
    made: list[tuple[int, int]] = []
    for b in episodes.tolist():
        others = np.flatnonzero((goals @ goals[b] < _OTHER_GOAL) & goals.any(axis=1))
        if goals[b].any() and len(others):
            made.append((b, int(rng.choice(others))))
    sources, given = np.array(made, np.int64).reshape(-1, 2).T
    lengths = np.diff(encoded.starts)[sources]
    rows = [np.arange(encoded.starts[b], encoded.starts[b + 1]) for b in sources.tolist()]
    copies = Encoded(
        encoded.steps[np.concatenate(rows)] if rows else encoded.steps[:0],
        goals[given],
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tuple(encoded.clauses[i] for i in given.tolist()),
    )
    return copies, sources


def first_saying(encoded: Encoded, threshold: float = REPEAT) -> NDArray[np.int64]:
    """(N,) the number, in its episode, of the first step that is as good as equal: its own if none is."""
    first = np.empty(len(encoded.steps), np.int64)
    for b in range(len(encoded.goals)):
        rows = encoded.rows(b)
        same = encoded.steps[rows] @ encoded.steps[rows].T > threshold
        np.fill_diagonal(same, True)
        first[rows] = same.argmax(axis=1)
    return first


def repeated_steps(encoded: Encoded, threshold: float = REPEAT) -> NDArray[np.bool_]:
    """(N,) whether a step is as good as equal to an earlier one of the same episode."""
    return first_saying(encoded, threshold) < encoded.places


def decayed_context(encoded: Encoded, counted: NDArray[np.bool_], decay: float = DECAY) -> Floats:
    """(N, d) unit rows of c_t = decay * c_s + phi_t, s the last counted step before t.

    A step that does not count sees its own context but leaves none to later ones.
    """
    context = np.empty_like(encoded.steps)
    lengths = np.diff(encoded.starts)
    order = np.argsort(-lengths, kind="stable")
    memory = np.zeros((len(lengths), encoded.steps.shape[1]), np.float32)
    for t in range(int(lengths.max(initial=0))):
        alive = order[: np.searchsorted(-lengths[order], -t)]
        rows = encoded.starts[alive] + t
        current = decay * memory[alive] + encoded.steps[rows]
        context[rows] = current
        keep = counted[rows]
        memory[alive[keep]] = current[keep]
    norm = np.linalg.norm(context, axis=1, keepdims=True)
    return context / np.maximum(norm, 1e-12)


def clause_progress(encoded: Encoded, counted: NDArray[np.bool_]) -> Floats:
    """(N, 6) how far a rollout has come along the clauses of its goal, in the order of the goal.

    Columns: soft alignment of the prefix to the clauses, similarity to the nearest clause, position of that
    clause, mean over clauses of the best similarity so far, similarity to the last clause, 1 / clauses.
    """
    from valuegraph.alignment_kernel import follow

    out = np.zeros((len(encoded.steps), _CLAUSE_FEATURES), np.float32)
    for b, parts in enumerate(encoded.clauses):
        rows, n = encoded.rows(b), len(parts)
        if n == 0:
            continue
        similarity, keep = encoded.steps[rows] @ parts.T, counted[rows]
        so_far = np.maximum.accumulate(np.where(keep[:, None], similarity, np.float32(-1.0)), axis=0)
        nearest = similarity.argmax(axis=1)
        out[rows, 0] = 3.0 * follow(np.clip((similarity - 0.3) / 0.4, 0.0, 1.0) / n, keep)
        out[rows, 1] = 3.0 * similarity.max(axis=1)
        out[rows, 2] = (nearest + 1) / n
        out[rows, 3] = 3.0 * np.maximum(so_far, similarity).mean(axis=1)
        out[rows, 4] = 3.0 * similarity[:, -1]
        out[rows, 5] = 1.0 / n
    return out


def learner_inputs(encoded: Encoded, counted: NDArray[np.bool_]) -> Floats:
    """(N, 3 d + 7) what the learner reads: phi, goal, their cosine, then context and clause progress."""
    goals = encoded.goals[encoded.episode_of]
    cosine = np.sum(encoded.steps * goals, axis=1, keepdims=True)
    context = decayed_context(encoded, counted)
    progress = clause_progress(encoded, counted)
    return np.concatenate([encoded.steps, goals, 5.0 * cosine, context, progress], axis=1)


def learner_width(dim: int) -> int:
    """Width of `learner_inputs` for embeddings of width d."""
    return own_width(dim) + dim + _CLAUSE_FEATURES


def own_width(dim: int) -> int:
    """How many of them, the first, are of the step and its goal alone: phi, goal and their cosine."""
    return 2 * dim + 1
