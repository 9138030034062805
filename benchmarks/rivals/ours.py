"""Ours behind the same protocol, whole and with each part removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.base import Scored
from valuegraph import FitConfig, RewardModel
from valuegraph.calibration import saturation
from valuegraph.encoders import Encoder
from valuegraph.episodes import Episode
from valuegraph.fitting import split
from valuegraph.graph import ValueGraph, Visit


class Ours:
    """The library with its defaults."""

    name = "ours"

    def __init__(self, seed: int = 0, evidence: str = "step", name: str = "ours") -> None:
        self.config, self.name = FitConfig(seed=seed, evidence=evidence), name
        self.episodes: Sequence[Episode] | None = None

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        self.model = RewardModel.fit(episodes, encoder, self.config, progress=False)
        self.episodes = episodes

    def score(self, rollouts: Sequence[Episode]) -> Scored:
        scores = self.model.score(rollouts)
        return Scored(list(scores.potentials), scores.total)


def _no_alignment(match: NDArray, *_: object, **__: object) -> NDArray[np.float64]:
    """g = 1 for every prefix (P, T): how a rollout got there is not asked."""
    return np.ones(match.shape[:2])


class _NoGraph(ValueGraph):
    """A memory without edges: a node is worth the mean credit of its visits."""

    def write(self, visits: Sequence[Visit]) -> None:
        super().write(visits)
        self.values[:] = self.column("credit") / np.maximum(self.column("visits"), 1.0)


class _NoGoal(ValueGraph):
    """Every key has the same goal, none."""

    def keys(self, z, steps, goals):  # type: ignore[no-untyped-def]
        return super().keys(z, steps, None if goals is None else np.zeros_like(goals))


class Without(Ours):
    """Ours with one name of the library replaced, calibrated anew; the learner stays the same."""

    def __init__(self, part: str, base: Ours, name: str, replacement: object) -> None:
        self.name, self.base = f"ours without {part}", base
        self.replaced = f"valuegraph.{name}", replacement

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        if self.base.episodes is not episodes:
            self.base.fit(episodes, encoder)
        net, config = self.base.model._net, self.base.config
        with patch(*self.replaced):
            self.model = RewardModel.fit(episodes, encoder, config, net=net, progress=False)

    def score(self, rollouts: Sequence[Episode]) -> Scored:
        with patch(*self.replaced):
            return super().score(rollouts)


class WithoutLearner(Ours):
    """Ours without a network: no z in the keys and no value head; calibrated in the same way."""

    def __init__(self, base: Ours) -> None:
        self.name, self.base = "ours without learner", base

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        if self.base.episodes is not episodes:
            self.base.fit(episodes, encoder)
        train, held = ([episodes[i] for i in part] for part in split(len(episodes), self.base.config))
        self.model = RewardModel.create(encoder, self.base.config)
        self._calibrate(1.0)
        self.model.update(train)
        if held:
            scores = self.model.score(held)
            won = np.array([episode.outcome for episode in held], np.float64) > 0.5
            short = [p[-2] for p, ok in zip(scores.potentials, won, strict=True) if ok and len(p) > 1]
            self._calibrate(saturation(scores.total, won, np.array(short)))
            self.model.update(held)

    def _calibrate(self, saturated: float) -> None:
        calibration = replace(self.base.model._calibration, saturation=saturated)
        self.model._calibration = self.model._scorer.calibration = calibration


class WithoutFailures(Ours):
    """Ours fitted on the successes alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, name="ours without failed episodes")

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        super().fit([e for e in episodes if e.outcome is None or e.outcome > 0.5], encoder)


def ablations(base: Ours) -> list[Ours]:
    """Ours with each part removed."""
    return [
        Without("graph", base, "fitting.ValueGraph", _NoGraph),
        Without("alignment", base, "ways.ordered_alignment", _no_alignment),
        WithoutLearner(base),
        Without("goal in the key", base, "fitting.ValueGraph", _NoGoal),
        WithoutFailures(base.config.seed),
    ]
