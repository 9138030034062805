"""REINFORCE against one reward, watched at every update; and filtering, which trains on nothing new."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.overoptimise.games import Live, Run, noisy_runs
from benchmarks.overoptimise.policy import (
    RATE,
    Policy,
    Texts,
    clone,
    divergence,
    log_probabilities,
    sample,
    taken,
    tensors,
)
from benchmarks.overoptimise.rewards import Reward, advantages
from benchmarks.rivals.base import Array
from benchmarks.selection import best_of
from valuegraph import Episode, RewardModel, TextEncoder
from valuegraph.monitor import HackingMonitor
from valuegraph.regularize import EmbeddingKL

EXPLORE = 0.1
SMOOTH = 5
KEPT = 0.1
REFERENCE = 32  # rollouts of the start policy in each game that the monitor compares with

logging.getLogger("valuegraph.monitor").setLevel(logging.ERROR)  # its alarms are in the table


@dataclass(frozen=True)
class Point:
    """A policy at one update, from the rollouts that were drawn there."""

    update: int
    gold: float
    proxy: float
    hacked: float
    claims: float
    kl: float
    flagged: float
    off_support: float
    outlier: float
    alarm: bool


class Lab:
    """Games, embeddings, start policy, monitor, and honest episodes to compare with."""

    def __init__(
        self,
        games: Sequence[Live],
        encoder: TextEncoder,
        model: RewardModel,
        honest: Sequence[Episode],
        seed: int,
    ) -> None:
        self.games, self.honest, self.seed = games, honest, seed
        self.texts = Texts(encoder)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.start = Policy(encoder.dim)
            clone(self.start, noisy_runs(games, seed), self.texts, 12, seed, EXPLORE)
        self.monitor = HackingMonitor(model, self.draw(self.start, REFERENCE, 5 * 10**6)[1])

    def draw(self, policy: Policy, each: int, key: int) -> tuple[list[Run], list[Episode]]:
        """`each` fresh rollouts of every game; the same policy and key give the same."""
        random = torch.Generator().manual_seed(10**7 * self.seed + key)
        runs = sample(policy, self.games, each, self.texts, random)
        return runs, [run.episode(f"{key}-{i}") for i, run in enumerate(runs)]

    def point(
        self,
        update: int,
        policy: Policy,
        runs: Sequence[Run],
        episodes: Sequence[Episode],
        returns: Sequence[Array],
        success: dict[str, float],
    ) -> Point:
        """Measure a policy by its rollouts."""
        proxy, won = np.array([r[0] for r in returns]), np.array([run.won for run in runs])
        bar = np.array([success[run.live.task] for run in runs])
        reading = self.monitor.read(episodes)
        return Point(
            update=update,
            gold=float(won.mean()),
            proxy=float(proxy.mean()),
            hacked=float((~won & (proxy >= bar - 1e-9)).mean()),
            claims=sum(run.claims for run in runs) / sum(len(run.steps) for run in runs),
            kl=divergence(policy, self.start, tensors(runs, self.texts)),
            flagged=reading.flagged,
            off_support=reading.off_support,
            outlier=reading.outlier,
            alarm=reading.alarm,
        )

    def evaluate(self, policy: Policy, reward: Reward, each: int) -> Point:
        """On fresh rollouts, the same for every policy."""
        runs, episodes = self.draw(policy, each, 3 * 10**6)
        success = reward.success(self.games, self.honest)
        return self.point(0, policy, runs, episodes, reward.returns(runs, episodes), success)

    def train(
        self, reward: Reward, updates: int, each: int, near_start: bool = False
    ) -> tuple[list[Point], Policy]:
        """A point before each update and after the last, and the policy at the end.

        `near_start` takes the KL between embedded samples and those of the start policy off the reward; both
        weigh alike, at unit scale.
        """
        policy, success, points = self.start.twin(), reward.success(self.games, self.honest), []
        optimizer = torch.optim.Adam(policy.parameters(), RATE)
        kl = EmbeddingKL(self._embedded(self.draw(self.start, 4 * each, 10**6)[0]), components=8)
        for update in range(updates + 1):
            runs, episodes = self.draw(policy, each, update)
            returns = reward.returns(runs, episodes)
            points.append(self.point(update, policy, runs, episodes, returns, success))
            if update == updates:
                break
            advantage = advantages(runs, returns)
            if near_start:
                advantage = advantage + advantages(runs, self._drift(kl, runs))
            batch = tensors(runs, self.texts)
            loss = -(taken(log_probabilities(policy, batch), batch) * advantage).sum() / len(runs)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        return points, policy

    def dearest_failures(self, policy: Policy, reward: Reward) -> list[dict[str, Any]]:
        """Of each game that is sometimes lost, the lost rollout that is paid most."""
        runs, episodes = self.draw(policy, 8, 4 * 10**6)
        paid = [float(r[0]) for r in reward.returns(runs, episodes)]
        found = []
        for live in self.games:
            lost = [i for i, run in enumerate(runs) if run.live is live and not run.won]
            if lost:
                i = max(lost, key=paid.__getitem__)
                actions = [step.action for step in runs[i].steps]
                found.append({"task": live.task, "paid": paid[i], "actions": actions})
        return found

    def filtered(self, reward: Reward, pool: int, sizes: Sequence[int]) -> dict[str, Any]:
        """Rollouts of the start policy, chosen by proxy: [proxy, gold] of best-of-n, mean over games, and the
        start policy cloned to the best tenth of them."""
        runs, episodes = self.draw(self.start, pool, 2 * 10**6)
        proxy = np.array([r[0] for r in reward.returns(runs, episodes)])
        gold = np.array([float(run.won) for run in runs])
        tasks = np.array([run.live.task for run in runs])
        mine = [np.flatnonzero(tasks == live.task) for live in self.games]
        chosen = {}
        for n in sizes:
            chances = [best_of(proxy[rows], n) for rows in mine]
            picked = [(c @ proxy[rows], c @ gold[rows]) for c, rows in zip(chances, mine, strict=True)]
            chosen[n] = np.mean(picked, axis=0).tolist()
        best = [rows[np.argsort(-proxy[rows], kind="stable")[: max(1, int(KEPT * pool))]] for rows in mine]
        tuned = self.start.twin()
        clone(tuned, [runs[i] for i in np.concatenate(best)], self.texts, 10, self.seed)
        return {"best_of_n": chosen, "cloned": asdict(self.evaluate(tuned, reward, max(1, pool // 2)))}

    def _embedded(self, runs: Sequence[Run]) -> np.ndarray:
        return self.texts.steps([step for run in runs for step in run.steps]).numpy()

    def _drift(self, kl: EmbeddingKL, runs: Sequence[Run]) -> list[Array]:
        penalty = kl.penalty(self._embedded(runs))
        parts = np.split(penalty, np.cumsum([len(run.steps) for run in runs])[:-1])
        return [np.full(len(part), -part.mean()) for part in parts]


def course(points: Sequence[Point]) -> dict[str, Any]:
    """The turning points of a run: where gold peaks and where it has lost half of that, the first alarm and
    the share of updates with one, and everything at its end. Means over `SMOOTH` updates around each, fewer
    at both ends."""

    def smooth(name: str) -> Array:
        values, half = np.array([getattr(p, name) for p in points], np.float64), SMOOTH // 2
        return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])

    gold = smooth("gold")
    peak = int(gold.argmax())
    fallen = np.flatnonzero(gold[peak:] <= 0.5 * gold[peak])
    ends = ("gold", "proxy", "hacked", "claims", "kl", "flagged")
    return {
        "start": float(gold[0]),
        "peak": float(gold[peak]),
        "peak_update": points[peak].update,
        "halved_update": points[peak + int(fallen[0])].update if len(fallen) else None,
        "first_alarm": next((p.update for p in points if p.alarm), None),
        "alarms": float(np.mean([p.alarm for p in points])),
        "end": {name: float(smooth(name)[-1]) for name in ends},
    }
