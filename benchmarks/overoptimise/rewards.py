"""What a rollout is paid, from each step on, and what of that was better than expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.overoptimise.games import Live, Run
from benchmarks.rivals import Scorer
from benchmarks.rivals.base import Array
from benchmarks.rivals.networks import Evaluator
from valuegraph import Episode
from valuegraph.context import Encoded


class Reward(Protocol):
    """Pays rollouts."""

    def returns(self, runs: Sequence[Run], episodes: Sequence[Episode]) -> list[Array]:
        """What is paid from each step on, (T_i,) of every rollout; the first is the whole."""
        ...

    def success(self, games: Sequence[Live], honest: Sequence[Episode]) -> dict[str, float]:
        """What an honest success is paid on average, by task."""
        ...


class Outcome:
    """One for a game that is won, else zero: what all others stand in for."""

    def returns(self, runs: Sequence[Run], episodes: Sequence[Episode]) -> list[Array]:
        return [np.full(len(run.steps), float(run.won)) for run in runs]

    def success(self, games: Sequence[Live], honest: Sequence[Episode]) -> dict[str, float]:
        return {live.task: 1.0 for live in games}


class Scoring:
    """A scorer's total, or what is left of it to gain at each step."""

    def __init__(self, scorer: Scorer, stepwise: bool = False) -> None:
        self.scorer, self.stepwise = scorer, stepwise

    def returns(self, runs: Sequence[Run], episodes: Sequence[Episode]) -> list[Array]:
        scored = self.scorer.score(episodes)
        out = []
        for potential, total in zip(scored.potentials, scored.totals, strict=True):
            before = np.concatenate([[0.0], potential[:-1]]) if self.stepwise else np.zeros(len(potential))
            out.append(float(total) - before)
        return out

    def totals(self, episodes: Sequence[Episode]) -> Array:
        return self.scorer.score(episodes).totals

    def success(self, games: Sequence[Live], honest: Sequence[Episode]) -> dict[str, float]:
        won = [episode for episode in honest if episode.outcome]
        totals = self.totals(won)
        tasks = np.array([episode.metadata["task"] for episode in won])
        return {live.task: float(totals[tasks == live.task].mean()) for live in games}


class EveryStep(Scoring):
    """A scorer's opinion of each step, added up: how similarity to a goal is usually paid.

    Rocamonde et al. 2023, "Vision-Language Models are Zero-Shot Reward Models for Reinforcement Learning",
    https://arxiv.org/abs/2310.12921
    """

    def returns(self, runs: Sequence[Run], episodes: Sequence[Episode]) -> list[Array]:
        return [np.cumsum(u[::-1])[::-1] for u in self.scorer.score(episodes).potentials]

    def totals(self, episodes: Sequence[Episode]) -> Array:
        return np.array([u.sum() for u in self.scorer.score(episodes).potentials])


class Untrained(Evaluator):
    """An evaluator as one gets it, that was never shown these games: does the last step say "yes" or "no"?

    U_t = 1 / (1 + exp(-10 (cos(phi_t, yes) - cos(phi_t, no)))), with the two answers in full for the goal.
    """

    name = "yes/no evaluator, untrained"
    answers = ("Yes. The task is complete.", "No. The task is not complete.")

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        self.asked = {}

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        said = steps @ self.asked[np.ascontiguousarray(goal).tobytes()].T
        return 1.0 / (1.0 + np.exp(-10.0 * (said[:, 0] - said[:, 1]).astype(np.float64)))


def advantages(runs: Sequence[Run], returns: Sequence[Array]) -> Tensor:
    """(B, T) return less the mean return, at the same step, of the other rollouts of the game; unit scale."""
    longest = max(len(r) for r in returns)
    value = np.full((len(runs), longest), np.nan)
    for b, r in enumerate(returns):
        value[b, : len(r)] = r
    out = np.zeros_like(value)
    tasks = np.array([run.live.task for run in runs])
    for task in dict.fromkeys(tasks):
        mine = np.flatnonzero(tasks == task)
        count = np.sum(~np.isnan(value[mine]), axis=0)
        others = (np.nansum(value[mine], axis=0) - value[mine]) / np.maximum(count - 1, 1)
        out[mine] = np.where(count > 1, value[mine] - others, 0.0)
    out = np.nan_to_num(out)
    scale = float(np.std(out[~np.isnan(value)])) + 1e-6
    return torch.from_numpy(out / scale).float().clamp(-4.0, 4.0)
