"""Rewards read from a memory of embedded steps; no gradient step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.base import Array, StepScorer, backward, keyed, outcomes_of
from valuegraph.context import Encoded
from valuegraph.episodes import Episode


class _Memory(StepScorer):
    """Distinct [step, goal] keys in a table."""

    keys: NDArray[np.float32]
    values: Array

    def store(self, encoded: Encoded) -> NDArray[np.int64]:
        """Fill the table; (N,) the row of each step."""
        keys = keyed(encoded.steps, encoded.goals[encoded.episode_of])
        # Equal texts have equal embeddings up to the last bits, which depend on nothing that matters here.
        _, first, rows = np.unique(keys.round(5), axis=0, return_index=True, return_inverse=True)
        self.keys = keys[first]
        return rows.reshape(-1)

    def average(self, rows: NDArray[np.int64], values: Array) -> Array:
        """(R,) mean over the steps of each row."""
        return np.bincount(rows, weights=values) / np.bincount(rows)

    def nearest(self, steps: NDArray, goal: NDArray, k: int) -> tuple[NDArray[np.int64], Array]:
        """(T, k) rows and cosines of the k nearest keys."""
        similarity = keyed(steps, goal) @ self.keys.T
        k = min(k, len(self.keys))
        rows = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        return rows, np.take_along_axis(similarity, rows, axis=1).astype(np.float64)


class EpisodicControl(_Memory):
    """U_t = sum_i w_i Q_i, w_i = k_i / sum k, k_i = 1 / (|h - h_i|^2 + 0.001), over the 50 nearest keys.

    Values are Monte-Carlo returns; equal keys average. Pritzel et al. 2017, "Neural Episodic Control", eq. 2
    to 5, https://arxiv.org/abs/1703.01988. The encoder stays as it is.
    """

    name = "episodic control (NEC)"

    def __init__(self, gamma: float = 0.99, k: int = 50, delta: float = 1e-3) -> None:
        self.gamma, self.k, self.delta = gamma, k, delta

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        rows = self.store(encoded)
        returns = backward(outcomes_of(episodes), np.diff(encoded.starts), self.gamma)
        self.values = self.average(rows, returns)

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        rows, cosine = self.nearest(steps, goal, self.k)
        kernel = 1.0 / (np.maximum(2.0 - 2.0 * cosine, 0.0) + self.delta)
        return (kernel * self.values[rows]).sum(axis=1) / kernel.sum(axis=1)


class AssociativeMemory(_Memory):
    """V_i = max(r_i, gamma max_j V_j) over the transitions i -> j of all episodes, read at the nearest key.

    The best that was ever seen to follow, stitched across episodes. Zhu et al. 2020, "Episodic Reinforcement
    Learning with Associative Memory" (ERLAM), algorithm 2, https://openreview.net/forum?id=HkxjqxBYDB
    """

    name = "max backup on the graph (ERLAM)"

    def __init__(self, gamma: float = 0.99) -> None:
        self.gamma = gamma

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        rows = self.store(encoded)
        inner = np.ones(len(rows), np.bool_)
        inner[encoded.starts[1:] - 1] = False
        tails = rows[inner]
        heads = rows[np.flatnonzero(inner) + 1]
        values = np.zeros(len(self.keys))
        np.maximum.at(values, rows[encoded.starts[1:] - 1], outcomes_of(episodes))
        while True:
            better = values.copy()
            np.maximum.at(better, tails, self.gamma * values[heads])
            if np.array_equal(better, values):
                self.values = values
                return
            values = better

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        rows, _ = self.nearest(steps, goal, 1)
        return self.values[rows[:, 0]]


class BackwardCredit(_Memory):
    """A step earns the mean credit 0.8^k of its five nearest memories, k steps before a success; the total is
    the sum: credit that decays backwards at a fixed rate, added up.
    """

    name = "backward credit 0.8^k, summed"

    def __init__(self, decay: float = 0.8, k: int = 5) -> None:
        self.decay, self.k = decay, k

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        rows = self.store(encoded)
        credit = backward(outcomes_of(episodes), np.diff(encoded.starts), self.decay)
        self.values = self.average(rows, credit)

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        rows, _ = self.nearest(steps, goal, self.k)
        return np.cumsum(self.values[rows].mean(axis=1))
