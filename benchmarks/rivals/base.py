"""What every scorer of the comparison has in common, ours and the rivals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from valuegraph.context import Encoded, encode_episodes
from valuegraph.encoders import Encoder
from valuegraph.episodes import Episode

Array = NDArray[np.float64]


class Scored(NamedTuple):
    """What a scorer says of B rollouts."""

    potentials: list[Array]
    """U_t after each step, (T_i,); the reward of a step is U_t - U_(t-1)."""
    totals: Array
    """(B,) score of each rollout as a whole."""


class Scorer(Protocol):
    """Learns from whole episodes and their outcome, then scores rollouts whose outcome it does not see."""

    name: str

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        """Learn; embeddings come from the encoder's cache, so that all scorers share one pass."""

    def score(self, rollouts: Sequence[Episode]) -> Scored: ...


class StepScorer:
    """A scorer whose opinion of a rollout so far is an array of one number per step."""

    name: str
    encoder: Encoder

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        self.encoder = encoder
        self.learn(encode_episodes(episodes, encoder), episodes)

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        """Learn from embedded episodes; nothing to do where a scorer only compares."""

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        """(T,) U_t of one rollout from its steps (T, d) and its goal (d,)."""
        raise NotImplementedError

    def total(self, potential: Array) -> float:
        """The score of a rollout: where it ended."""
        return float(potential[-1])

    def score(self, rollouts: Sequence[Episode]) -> Scored:
        encoded = encode_episodes(rollouts, self.encoder)
        potentials = [self.potential(steps, goal) for steps, goal in each(encoded)]
        return Scored(potentials, np.array([self.total(p) for p in potentials]))


def each(encoded: Encoded) -> Iterator[tuple[NDArray, NDArray]]:
    """Steps (T, d) and goal (d,) of every episode."""
    for b in range(len(encoded.goals)):
        yield encoded.steps[encoded.rows(b)], encoded.goals[b]


def outcomes_of(episodes: Sequence[Episode]) -> Array:
    """(B,) outcomes. Raises ValueError where one is missing: the rivals have nothing to put in its place."""
    for episode in episodes:
        if episode.outcome is None:
            raise ValueError(f"episode {episode.episode_id!r} has no outcome")
    return np.array([episode.outcome for episode in episodes], np.float64)


def keyed(steps: NDArray, goals: NDArray) -> NDArray[np.float32]:
    """(N, 2 d) unit keys of a step and the goal it was done for, half and half."""
    goals = np.broadcast_to(goals, steps.shape)
    return (np.concatenate([steps, goals], axis=1) / np.sqrt(2.0)).astype(np.float32)


def backward(outcomes: Array, lengths: NDArray, gamma: float) -> Array:
    """(N,) gamma^(T - 1 - t) * outcome of the steps of all episodes, one after the other."""
    return np.concatenate(
        [y * gamma ** np.arange(n - 1, -1, -1.0) for y, n in zip(outcomes, lengths, strict=True)]
    )
