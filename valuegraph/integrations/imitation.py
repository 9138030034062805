"""A reward function for imitation, `fn(state, action, next_state, done)`; it imports nothing of imitation's.

venv = RewardVecEnvWrapper(venv, ValueRewardFn(rm, goal="reach the exit"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.integrations._rollouts import ModelHandle, flat, observed

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["ValueRewardFn"]

MODES = ("shaping", "potential")


class ValueRewardFn:
    """Rewards of N transitions from the model's potential Psi of their states.

    mode "shaping": F = gamma * Psi(s') - Psi(s), Psi of a terminal state 0 (Ng, Harada & Russell 1999), to be
        added to a reward of the task: by itself it does not say what the task is.
    mode "potential": Psi(s') in [0, 1], a reward by itself.
    describe: state -> text or vector, as the model was fitted on; by default the state's numbers, flat.

    imitation's `done` does not tell a time limit from an end, so either counts as an end.
    """

    def __init__(
        self,
        rm_or_path: RewardModel | str | os.PathLike[str],
        *,
        goal: str | None = None,
        mode: str = "shaping",
        gamma: float = 0.99,
        describe: Callable[[Any], str | Sequence[float]] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}, expected one of {MODES}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma}, must be in [0, 1]")
        self.goal, self.mode, self.gamma = goal, mode, gamma
        self.describe = describe or flat
        self._handle = ModelHandle(rm_or_path)

    def __call__(
        self, state: NDArray, action: NDArray, next_state: NDArray, done: NDArray
    ) -> NDArray[np.float32]:
        """(N,) rewards of (N, ...) states, actions (not read), next states and (N,) ends."""
        count = len(next_state)
        if self.mode == "potential":
            return self.potential(next_state).astype(np.float32)
        psi = self.potential([*state, *next_state])
        after = np.where(np.asarray(done, bool), 0.0, psi[count:])
        return (self.gamma * after - psi[:count]).astype(np.float32)

    def potential(self, states: Sequence[Any] | NDArray) -> NDArray[np.float64]:
        """(N,) Psi in [0, 1] of (N, ...) states."""
        if not len(states):
            return np.zeros(0)
        return self._handle.model.potential([observed(self.describe(state)) for state in states], self.goal)
