"""Rewards that a network learns from outcomes. All read the same embeddings: step, goal and their cosine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.rivals.base import Array, StepScorer, each, outcomes_of
from valuegraph.context import Encoded
from valuegraph.encoders import Encoder
from valuegraph.episodes import Episode, Step

HIDDEN = 128
BATCH = 64


def features(steps: NDArray, goal: NDArray) -> Tensor:
    """(T, 2 d + 1) what a network reads of each step."""
    cosine = 5.0 * steps @ goal
    goals = np.broadcast_to(goal, steps.shape)
    return torch.from_numpy(np.concatenate([steps, goals, cosine[:, None]], axis=1).astype(np.float32))


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(HIDDEN, 1))


def train(net: nn.Module, count: int, loss: Callable[[NDArray], Tensor], epochs: int, seed: int) -> None:
    """AdamW on random batches of indices below `count`."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    net.train()
    for _ in range(epochs):
        for rows in _batches(rng.permutation(count)):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
    net.eval()


def _batches(order: NDArray) -> Iterator[NDArray]:
    yield from (order[i : i + BATCH] for i in range(0, len(order), BATCH))


class _Network(StepScorer):
    net: nn.Module

    def __init__(self, seed: int = 0, epochs: int = 20) -> None:
        self.seed, self.epochs = seed, epochs

    def fit(self, episodes: Sequence[Episode], encoder: Encoder) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            super().fit(episodes, encoder)

    @torch.inference_mode()
    def read(self, inputs: Tensor) -> Array:
        """(T,) output of the network for one rollout."""
        return self.net(inputs).squeeze(-1).numpy().astype(np.float64)

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        return self.read(features(steps, goal))


class _Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, 1)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        batch = inputs if inputs.dim() == 3 else inputs[None]
        out = self.out(self.lstm(functional.gelu(self.enter(batch)))[0])
        return out if inputs.dim() == 3 else out[0]


class Rudder(_Network):
    """U_t = the return that an LSTM expects after step t; rewards are its differences.

    Loss: squared error at the last step, and half of that at every step. Arjona-Medina et al. 2019, "RUDDER:
    Return Decomposition for Delayed Rewards", https://arxiv.org/abs/1806.07857
    """

    name = "RUDDER"

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        inputs = [features(*one) for one in each(encoded)]
        y = torch.from_numpy(outcomes_of(episodes)).float()
        self.net = _Recurrent(inputs[0].shape[1])

        def loss(rows: NDArray) -> Tensor:
            parts = [inputs[i] for i in rows]
            lengths = torch.tensor([len(p) for p in parts])
            expected = self.net(pad_sequence(parts, batch_first=True)).squeeze(-1)
            error = (expected - y[rows][:, None]).square()
            inside = torch.arange(error.shape[1])[None] < lengths[:, None]
            last = error[torch.arange(len(rows)), lengths - 1]
            return last.mean() + 0.5 * error[inside].mean()

        train(self.net, len(inputs), loss, self.epochs, self.seed)


class RandomizedDecomposition(_Network):
    """Step rewards r(x_t) whose sum over an episode is its return; U_t is the sum so far.

    Loss: (R - T / |I| sum_(t in I) r(x_t))^2, I a random subset of at most 8 steps. Ren et al. 2022,
    "Learning Long-Term Reward Redistribution via Randomized Return Decomposition", https://arxiv.org/abs/2111.13485
    """

    name = "randomized return decomposition"
    subset = 8

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        inputs = [features(*one) for one in each(encoded)]
        y = torch.from_numpy(outcomes_of(episodes)).float()
        self.net = perceptron(inputs[0].shape[1])
        rng = np.random.default_rng(self.seed)

        def loss(rows: NDArray) -> Tensor:
            chosen = [rng.permutation(len(inputs[i]))[: self.subset] for i in rows]
            sizes = torch.tensor([len(c) for c in chosen])
            rewards = self.net(torch.cat([inputs[i][c] for i, c in zip(rows, chosen, strict=True)]))
            owner = torch.repeat_interleave(torch.arange(len(rows)), sizes)
            sums = torch.zeros(len(rows)).index_add(0, owner, rewards.squeeze(-1))
            whole = torch.tensor([len(inputs[i]) for i in rows]) / sizes
            return (y[rows] - whole * sums).square().mean()

        train(self.net, len(inputs), loss, self.epochs, self.seed)

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        return np.cumsum(super().potential(steps, goal))


def completions(episodes: Sequence[Episode]) -> Array:
    """(N,) soft Monte-Carlo label of each step: share of the episodes through it that succeed."""
    through: dict[tuple[str | None, Step], list[float]] = defaultdict(list)
    outcomes = outcomes_of(episodes)
    for episode, outcome in zip(episodes, outcomes, strict=True):
        for step in dict.fromkeys(episode.steps):
            through[episode.goal, step].append(float(outcome))
    return np.array([np.mean(through[e.goal, step]) for e in episodes for step in e.steps])


class StepRewardNet(_Network):
    """A process reward model: U_t is the chance of success after step t, the total its minimum over steps.

    Labels are soft Monte-Carlo estimates, here over the recorded episodes that pass through the same step.
    Wang et al. 2024, "Math-Shepherd: Verify and Reinforce LLMs Step-by-step without Human Annotations",
    https://arxiv.org/abs/2312.08935
    """

    name = "step-reward network, min (Math-Shepherd)"
    aggregate = staticmethod(np.min)

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        inputs = torch.cat([features(*one) for one in each(encoded)])
        labels = torch.from_numpy(completions(episodes)).float()
        self.net = perceptron(inputs.shape[1])

        def loss(rows: NDArray) -> Tensor:
            return functional.binary_cross_entropy_with_logits(
                self.net(inputs[rows]).squeeze(-1), labels[rows]
            )

        train(self.net, len(inputs), loss, max(1, self.epochs // 4), self.seed)

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        return 1.0 / (1.0 + np.exp(-super().potential(steps, goal)))

    def total(self, potential: Array) -> float:
        return float(self.aggregate(potential))


class StepRewardLast(StepRewardNet):
    """The same network, the total being the chance of success after the last step, not the minimum."""

    name = "step-reward network, last"
    aggregate = staticmethod(lambda potential: potential[-1])


class Evaluator(_Network):
    """Has the goal been reached, yes or no? U_t is the chance of yes, from the text of the last step alone.

    A small classifier on the step, the goal, and how much the step says "yes" and "no", trained on the last
    steps of episodes. Its known flaw is that it reads what the policy itself wrote. After Zheng et al. 2023,
    "Judging LLM-as-a-Judge", https://arxiv.org/abs/2306.05685
    """

    name = "yes/no evaluator"
    answers = ("Yes. The task is complete: {}", "No. The task is not complete: {}")

    def learn(self, encoded: Encoded, episodes: Sequence[Episode]) -> None:
        self.asked: dict[bytes, NDArray] = {}
        for goal in {episode.goal for episode in episodes}:
            self._answers(goal)
        inputs = torch.cat([self._inputs(steps[-1:], goal) for steps, goal in each(encoded)])
        y = torch.from_numpy(outcomes_of(episodes)).float()
        self.net = perceptron(inputs.shape[1])

        def loss(rows: NDArray) -> Tensor:
            return functional.binary_cross_entropy_with_logits(self.net(inputs[rows]).squeeze(-1), y[rows])

        train(self.net, len(inputs), loss, self.epochs, self.seed)

    def score(self, rollouts: Sequence[Episode]):
        for goal in {rollout.goal for rollout in rollouts}:
            self._answers(goal)
        return super().score(rollouts)

    def potential(self, steps: NDArray, goal: NDArray) -> Array:
        return 1.0 / (1.0 + np.exp(-self.read(self._inputs(steps, goal))))

    def _answers(self, goal: str | None) -> None:
        key = self.encoder.encode_goals([goal])[0].tobytes()
        if key not in self.asked:
            self.asked[key] = self.encoder.encode_goals(
                [answer.format(goal or "") for answer in self.answers]
            )

    def _inputs(self, steps: NDArray, goal: NDArray) -> Tensor:
        said = 5.0 * steps @ self.asked[np.ascontiguousarray(goal).tobytes()].T
        return torch.cat([features(steps, goal), torch.from_numpy(said.astype(np.float32))], dim=1)
