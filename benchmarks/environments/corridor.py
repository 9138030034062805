"""A real Gymnasium environment small enough to know every answer, and a memory of it."""

import gymnasium as gym
import numpy as np

from valuegraph import ArrayEncoder, Episode, FitConfig, RewardModel, Step

CELLS = 6


class Corridor(gym.Env):
    """Cells 0..5 in a row, start at 1: action 1 goes right, 0 left. Cell 5 pays 1 and ends, cell 0 ends."""

    def __init__(self, max_steps=20):
        self.observation_space = gym.spaces.Box(0.0, 1.0, (CELLS,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.max_steps = max_steps
        self.cell, self.steps = 1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = 1, 0
        return self._seen(), {"room": "corridor"}

    def step(self, action):
        self.cell, self.steps = self.cell + (1 if action else -1), self.steps + 1
        terminated = self.cell in (0, CELLS - 1)
        return (
            self._seen(),
            float(self.cell == CELLS - 1),
            terminated,
            self.steps >= self.max_steps and not terminated,
            {"room": "corridor"},
        )

    def _seen(self):
        return np.eye(CELLS, dtype=np.float32)[self.cell]


def cells(*visited):
    return tuple(Step(tuple(np.eye(CELLS)[cell])) for cell in visited)


def grown_model(goal=None):
    """A memory of a success, a failure and an episode that was cut off."""
    rm = empty_model()
    rm.update(
        [
            Episode("won", cells(1, 2, 3, 4, 5), goal, 1.0, terminated=True),
            Episode("lost", cells(1, 2, 1, 0), goal, 0.0, terminated=True),
            Episode("cut", cells(1, 2, 3, 2, 3), goal, 0.0, truncated=True),
        ]
    )
    return rm


def empty_model():
    return RewardModel.create(
        ArrayEncoder(CELLS, kernel="cosine"), FitConfig(evidence="observation", device="cpu")
    )
