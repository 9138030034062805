"""What a score is: of a batch of rollouts, and of one with everything that went into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RolloutScore", "Scores", "collect"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of B rollouts. All but the step rewards lie in [0, 1]."""

    episode_ids: tuple[str, ...]
    total: Array
    """(B,) combined utility U_T of the whole rollout."""
    terminal: Array
    """(B,) u_T: did it end where good episodes end?"""
    instrumental: Array
    """(B,) g_T: did it get there the way good episodes get there?"""
    support: Array
    """(B,) how near the rollout is to what is remembered; near zero means that the score is a guess."""
    potentials: tuple[Array, ...]
    """U_t after each step, (T_i,)."""
    step_rewards: tuple[Array, ...]
    """U_t - U_(t-1) with U_(-1) = 0, (T_i,); they sum to the total."""

    def __len__(self) -> int:
        return len(self.episode_ids)


class RolloutScore(NamedTuple):
    """Everything that went into the score of one rollout; arrays are per step, (T,)."""

    potential: Array
    """U_t on the way, and the total from the last step that counts."""
    running: Array
    """U_t had the rollout not stopped yet."""
    closing: Array
    """The total, had the rollout stopped here."""
    terminal: Array
    instrumental: Array
    support: Array
    counted: NDArray[np.bool_]
    confidence: float
    """How sure it is that the memory knows this goal, in [0, 1]."""
    way: int
    """The remembered path that fits best, -1 if there is none."""
    arrival: float
    """How surely it has come to where successes end, in [0, 1]; see `ways.arrived`."""


def collect(episode_ids: Sequence[str], rollouts: Sequence[RolloutScore]) -> Scores:
    """`Scores` of rollouts that were scored one by one."""
    last = [(r.potential[-1], r.terminal[-1], r.instrumental[-1], r.support.mean()) for r in rollouts]
    columns = np.array(last, np.float64).reshape(-1, 4).T
    return Scores(
        tuple(episode_ids),
        total=columns[0],
        terminal=columns[1],
        instrumental=columns[2],
        support=columns[3],
        potentials=tuple(r.potential for r in rollouts),
        step_rewards=tuple(np.diff(r.potential, prepend=0.0) for r in rollouts),
    )
