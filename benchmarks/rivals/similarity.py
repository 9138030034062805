"""Rewards that only compare a state with the goal's words; nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.base import Array, StepScorer
from valuegraph.encoders import Encoder
from valuegraph.episodes import Episode


class GoalCosineLast(StepScorer):
    """U_t = cos(phi_t, goal), the similarity of where it stands to the goal.

    Fan et al. 2022, MineDojo, https://arxiv.org/abs/2206.08853
    """

    name = "goal cosine, last"

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        return (steps @ goal).astype(np.float64)


class GoalCosineMax(GoalCosineLast):
    """U_t = max_(s <= t) cos(phi_s, goal): the nearest that it came to the goal."""

    name = "goal cosine, max"

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        return np.maximum.accumulate(super().potential(steps, goal))


class GoalBaseline(StepScorer):
    """U_t = 1 - |a proj_L(phi_t) + (1 - a) phi_t - g|^2 / 2, L the line through baseline b and goal g.

    Goal-baseline regularisation, a = 0.5: what is irrelevant to the way from the baseline to the goal weighs
    less. Rocamonde et al. 2023, "Vision-Language Models are Zero-Shot Reward Models for RL", eq. 5,
    https://arxiv.org/abs/2310.12921
    """

    name = "goal baseline (VLM-RM)"
    baseline = "A player in a text game. Nothing has been done yet."

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        super().fit(episodes, encoder)
        self.origin = encoder.encode_goals([self.baseline])[0]

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        direction = goal - self.origin
        along = (steps - self.origin) @ direction / max(float(direction @ direction), 1e-12)
        projected = self.origin + along[:, None] * direction
        mixed = self.alpha * projected + (1.0 - self.alpha) * steps
        return 1.0 - 0.5 * np.square(mixed - goal, dtype=np.float64).sum(axis=1)
