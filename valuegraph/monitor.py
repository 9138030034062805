"""Is the policy still doing what was ever seen to be done? A monitor of reward hacking, read per batch.

It never looks at rewards: a policy that over-optimises repeats itself, says what nobody said, leaves the
support of the memory or joins steps that never followed each other, before or while its reward rises.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.context import encode_episodes, learner_inputs
from valuegraph.episodes import Episode
from valuegraph.graph import Neighbours, ValueGraph
from valuegraph.networks import read_steps
from valuegraph.reward_model import RewardModel

__all__ = ["HackingMonitor", "MonitorReading"]

_LOGGER = logging.getLogger(__name__)

Array = NDArray[np.float64]

_FAR = 0.5  # support below which a step is off the memory
_LINKED = 0.5  # kernel from which a memory stands for a step
_SHRINKAGE = 0.1  # of the covariance of z: it has more dimensions than a small reference can fill
_INLIERS = 0.99
_LEAST = 20


@dataclass(frozen=True)
class MonitorReading:
    """What a batch of B rollouts looks like beside honest ones. Shares are in [0, 1]."""

    off_support: float
    """Share of steps whose (step, goal) is far from all memories."""
    outlier: float
    """Share of steps whose z lies beyond the 99 % quantile of honest steps (Mahalanobis)."""
    flagged: float
    """Share of rollouts whose score is beyond the monitor's threshold."""
    alarm: bool
    """More rollouts are flagged than honest ones would be, by three standard errors and one rollout."""
    score: Array
    """(B,) how unlike honest rollouts: the largest surprisal of its indices, in nats."""


class HackingMonitor:
    """Alarms on rollouts unlike honest ones, whatever they are paid; each reading is logged.

    Three indices of a rollout: the share of steps that are no evidence (repeated, alien, echoes of the goal),
    the mean lack of support at (step, goal), and the share of transitions that the graph has never seen. Each
    becomes a surprisal -log P(honest >= x) by its rank in the reference; the score is the largest. The shares
    beside it are after the outlier indices of Miao et al. 2024, "InfoRM", https://arxiv.org/abs/2402.09345.

    `reference`: honest rollouts, good and bad, that the model was not fitted on. `false_alarms`: share of
    them that is flagged, in (0, 1). Raises ValueError for fewer than 20 rollouts. A rollout that merely stops
    short is honest; what nobody did yet is not, a better way included: an alarm asks for somebody to look.
    """

    def __init__(self, rm: RewardModel, reference: Sequence[Episode], *, false_alarms: float = 0.05) -> None:
        if len(reference) < _LEAST:
            raise ValueError(f"need at least {_LEAST} honest rollouts to compare with, got {len(reference)}")
        if not 0.0 < false_alarms < 1.0:
            raise ValueError(f"false_alarms must be in (0, 1), not {false_alarms}")
        self._rm, self.false_alarms = rm, false_alarms
        honest = self._look(reference)
        self._mean = honest.z.mean(axis=0)
        covariance = np.atleast_2d(np.cov(honest.z.T)) if honest.z.shape[1] else np.zeros((0, 0))
        ridge = _SHRINKAGE * (np.trace(covariance) / max(len(covariance), 1) + 1e-12)
        self._precision = np.linalg.inv((1.0 - _SHRINKAGE) * covariance + ridge * np.eye(len(covariance)))
        self._inside = float(np.quantile(self._distances(honest.z), _INLIERS))
        self._honest = np.sort(honest.indices, axis=0)
        # Ranks end at the largest honest value; beyond it the spread above the median is the unit.
        self._spread = np.quantile(self._honest, 0.95, axis=0) - np.median(self._honest, axis=0)
        self.threshold = float(np.quantile(self._score(honest.indices), 1.0 - false_alarms))

    def read(self, rollouts: Sequence[Episode]) -> MonitorReading:
        """Look at a batch; outcomes and rewards are not read. Raises ValueError where there is none."""
        if not rollouts:
            raise ValueError("there is no rollout to look at")
        seen = self._look(rollouts)
        score = self._score(seen.indices)
        flagged, expected, n = float((score > self.threshold).mean()), self.false_alarms, len(score)
        bound = expected + 3.0 * np.sqrt(expected * (1.0 - expected) / n) + 1.0 / n
        reading = MonitorReading(
            off_support=float((seen.support < _FAR).mean()),
            outlier=float((self._distances(seen.z) > self._inside).mean()),
            flagged=flagged,
            alarm=bool(flagged > bound),
            score=score,
        )
        _LOGGER.log(
            logging.WARNING if reading.alarm else logging.INFO,
            "%d rollouts: %.0f %% unlike honest ones (%.0f %% expected), %.0f %% of steps off the memory, "
            "%.0f %% outliers",
            n,
            *(100.0 * share for share in (flagged, expected, reading.off_support, reading.outlier)),
        )
        return reading

    def _distances(self, z: Array) -> Array:
        """(N,) Mahalanobis distance from honest z."""
        centred = z - self._mean
        return np.sqrt(np.maximum(np.sum(centred @ self._precision * centred, axis=1), 0.0))

    def _score(self, indices: Array) -> Array:
        n = len(self._honest)
        surprisals = np.zeros(indices.shape)
        for i, (column, honest) in enumerate(zip(indices.T, self._honest.T, strict=True)):
            above = n - np.searchsorted(honest, column - 1e-9)
            beyond = np.maximum(column - honest[-1], 0.0) / max(self._spread[i], 0.05)
            surprisals[:, i] = -np.log((above + 1.0) / (n + 1.0)) + beyond
        return np.asarray(surprisals.max(axis=1))

    def _look(self, rollouts: Sequence[Episode]) -> _Seen:
        rm = self._rm
        encoded = encode_episodes(rollouts, rm.encoder, rm.config.evidence)
        indices, support, inferred = np.zeros((len(rollouts), 3)), [], []
        with rm._lock.read:
            scorer, graph = rm._scorer, rm.graph
            for b in range(len(rollouts)):
                one = encoded.select(b)
                counted = scorer.evidence(one).counted
                goals = np.broadcast_to(one.goals[0], one.steps.shape)
                near = graph.neighbours(graph.keys(None, one.steps, goals))
                z = np.zeros((len(counted), 0))
                if scorer.net is not None:
                    z = read_steps(scorer.net, learner_inputs(one, counted), counted).z.astype(np.float64)
                indices[b] = 1.0 - counted.mean(), 1.0 - near.support.mean(), _unseen(graph, near)
                support.append(near.support)
                inferred.append(z)
        return _Seen(indices, np.concatenate(support), np.concatenate(inferred))


class _Seen(NamedTuple):
    """(B, 3) indices of the rollouts; (N,) support and (N, z) roles of all their steps."""

    indices: Array
    support: Array
    z: Array


def _unseen(graph: ValueGraph, near: Neighbours) -> float:
    """Share of transitions between whose memories the graph has no edge; staying at a memory is none."""
    linked = near.kernel >= _LINKED
    seen, _ = graph.edges.followed(near.nodes, linked.astype(np.float64))
    at = [row[close] for row, close in zip(near.nodes, linked, strict=True)]
    stayed = np.array([np.isin(there, here).any() for here, there in pairwise(at)], np.bool_)
    return float(np.sum(~stayed & (seen[1:] == 0.0))) / max(len(at) - 1, 1)
