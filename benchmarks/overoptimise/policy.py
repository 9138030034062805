"""A small policy over commands: what was done and seen, read by a GRU, against each command at hand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.overoptimise.games import Live, Run
from valuegraph import Step, TextEncoder

HIDDEN, RATE = 96, 3e-3
SHARPNESS = 4.0  # of the logits at the start, so that a clone can be sure of itself within a few epochs


class Texts:
    """Embeddings of steps and commands, each computed once."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.dim = encoder, encoder.dim
        self._known: dict[Hashable, np.ndarray] = {}

    def steps(self, steps: Sequence[Step]) -> Tensor:
        return self._get(steps, self.encoder.encode_steps)

    def commands(self, texts: Sequence[str]) -> Tensor:
        return self._get(texts, self.encoder.encode_goals)

    def _get(self, items: Sequence[Any], encode: Callable[[list[Any]], np.ndarray]) -> Tensor:
        new = [item for item in dict.fromkeys(items) if item not in self._known]
        if new:
            self._known.update(zip(new, encode(new), strict=True))
        return torch.from_numpy(np.stack([self._known[item] for item in items]))


class Policy(nn.Module):
    """Log-probabilities of the commands at hand."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.enter, self.cell = nn.Linear(2 * dim, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)
        self.query, self.key = nn.Linear(HIDDEN, HIDDEN), nn.Linear(dim, HIDDEN)
        self.bias = nn.Linear(dim, 1)

    def forward(
        self, seen: Tensor, goal: Tensor, state: Tensor, options: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, C) log-probabilities and the next state, from (B, d), (B, d), (B, H), (B, C, d), (B, C)."""
        state = self.cell(torch.tanh(self.enter(torch.cat([seen, goal], dim=-1))), state)
        keys = torch.tanh(self.key(options))
        logits = (keys @ self.query(state)[..., None]).squeeze(-1) * SHARPNESS / HIDDEN**0.5
        logits = logits + self.bias(options).squeeze(-1)
        return logits.masked_fill(~mask, float("-inf")).log_softmax(-1), state

    def twin(self) -> Policy:
        """A copy to train."""
        other = Policy(self.key.in_features)
        other.load_state_dict(self.state_dict())
        return other


class Batch(NamedTuple):
    """B rollouts of at most T steps with at most C commands, padded: what was read, what was chosen."""

    seen: Tensor
    """(B, T, d) the step before; zero at the first."""
    goals: Tensor
    options: Tensor
    """(B, T, C, d)."""
    mask: Tensor
    """(B, T, C) which of them there are."""
    chosen: Tensor
    alive: Tensor
    """(B, T)."""


def tensors(runs: Sequence[Run], texts: Texts) -> Batch:
    rows, longest = len(runs), max(len(run.steps) for run in runs)
    width = max(len(option) for run in runs for option in run.options)
    seen, options = torch.zeros(rows, longest, texts.dim), torch.zeros(rows, longest, width, texts.dim)
    mask = torch.zeros(rows, longest, width, dtype=torch.bool)
    mask[..., 0] = True  # after the end too: a softmax over nothing is not a number
    chosen = torch.zeros(rows, longest, dtype=torch.long)
    alive = torch.zeros(rows, longest, dtype=torch.bool)
    for b, run in enumerate(runs):
        n = len(run.steps)
        if n > 1:
            seen[b, 1:n] = texts.steps(run.steps[:-1])
        for t, option in enumerate(run.options):
            options[b, t, : len(option)] = texts.commands(option)
            mask[b, t, : len(option)] = True
        chosen[b, :n] = torch.tensor(run.chosen)
        alive[b, :n] = True
    return Batch(seen, texts.commands([run.live.goal for run in runs]), options, mask, chosen, alive)


def sample(
    policy: Policy, games: Sequence[Live], each: int, texts: Texts, draw: torch.Generator
) -> list[Run]:
    """`each` rollouts of every game, stepped side by side."""
    runs = [Run(live) for live in games for _ in range(each)]
    state, start = torch.zeros(len(runs), HIDDEN), torch.zeros(texts.dim)
    goals = texts.commands([run.live.goal for run in runs])
    with torch.inference_mode():
        while live := [i for i, run in enumerate(runs) if not run.over]:
            options = [runs[i].live.commands(runs[i].at) for i in live]
            seen = torch.stack([texts.steps(runs[i].steps[-1:])[0] if runs[i].steps else start for i in live])
            logs, state[live] = policy(seen, goals[live], state[live], *_padded(options, texts))
            picks = torch.multinomial(logs.exp(), 1, generator=draw)[:, 0].tolist()
            for i, option, pick in zip(live, options, picks, strict=True):
                runs[i].act(option, pick)
    return runs


def _padded(options: Sequence[tuple[str, ...]], texts: Texts) -> tuple[Tensor, Tensor]:
    width = max(map(len, options))
    out = torch.zeros(len(options), width, texts.dim)
    mask = torch.zeros(len(options), width, dtype=torch.bool)
    for row, option in enumerate(options):
        out[row, : len(option)] = texts.commands(option)
        mask[row, : len(option)] = True
    return out, mask


def log_probabilities(policy: Policy, batch: Batch) -> Tensor:
    """(B, T, C)."""
    state, out = torch.zeros(len(batch.seen), HIDDEN), []
    for t in range(batch.seen.shape[1]):
        logs, state = policy(batch.seen[:, t], batch.goals, state, batch.options[:, t], batch.mask[:, t])
        out.append(logs)
    return torch.stack(out, dim=1)


def taken(logs: Tensor, batch: Batch) -> Tensor:
    """(B, T) log-probability of what was chosen, 0 after the end."""
    return logs.gather(-1, batch.chosen[..., None]).squeeze(-1) * batch.alive


@torch.inference_mode()
def divergence(policy: Policy, start: Policy, batch: Batch) -> float:
    """Mean over rollouts of the sum over steps of KL(policy || start), in nats."""
    now, then = log_probabilities(policy, batch), log_probabilities(start, batch)
    gap = (now.exp() * (now - then).masked_fill(~batch.mask, 0.0)).sum(-1) * batch.alive
    return float(gap.sum() / len(gap))


def clone(
    policy: Policy, runs: Sequence[Run], texts: Texts, epochs: int, seed: int, explore: float = 0.0
) -> None:
    """Imitate rollouts; a share `explore` of the loss asks for anything at hand, claims too, so that all
    can be found."""
    optimizer, rng = torch.optim.Adam(policy.parameters(), RATE), np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(runs)), max(1, len(runs) // 24)):
            batch = tensors([runs[i] for i in rows], texts)
            logs = log_probabilities(policy, batch)
            uniform = logs.masked_fill(~batch.mask, 0.0).sum(-1) / batch.mask.sum(-1) * batch.alive
            loss = -((1.0 - explore) * taken(logs, batch) + explore * uniform).sum() / batch.alive.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
