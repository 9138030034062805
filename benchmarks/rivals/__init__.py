"""Ours and the rivals behind one protocol: `fit(episodes, encoder)`, then `score(rollouts)`.

Every rival reads the same embeddings, learns from the same episodes and is used with its own defaults.
"""

from __future__ import annotations

from benchmarks.rivals.base import Scored, Scorer
from benchmarks.rivals.memories import AssociativeMemory, BackwardCredit, EpisodicControl
from benchmarks.rivals.networks import (
    Evaluator,
    RandomizedDecomposition,
    Rudder,
    StepRewardLast,
    StepRewardNet,
)
from benchmarks.rivals.ours import Ours, ablations
from benchmarks.rivals.similarity import GoalBaseline, GoalCosineLast, GoalCosineMax

__all__ = ["Ours", "Scored", "Scorer", "ablations", "rivals"]


def rivals(seed: int = 0) -> list[Scorer]:
    """A fresh scorer of each kind; `seed` is that of the networks."""
    return [
        GoalCosineLast(),
        GoalCosineMax(),
        GoalBaseline(),
        EpisodicControl(),
        AssociativeMemory(),
        Rudder(seed),
        RandomizedDecomposition(seed),
        BackwardCredit(),
        StepRewardNet(seed),
        StepRewardLast(seed),
        Evaluator(seed),
    ]
