"""The learner as a plain torch module: from a step in its context to value and instrumental embedding."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

__all__ = [
    "Gains",
    "InstrumentalNet",
    "Learned",
    "Reading",
    "Sample",
    "decomposition_loss",
    "net_from_arrays",
    "net_to_arrays",
    "read_steps",
    "retrieval_loss",
    "sample_steps",
    "value_loss",
]

TEMPERATURE = 0.1
"""tau of the soft nearest-neighbour read over z."""
FINAL_WEIGHT = 5.0
"""Weight of an episode's last step in the value loss."""
SUBSET = 8
"""Steps of an episode whose gains stand for those of all of them, at most."""
_GAIN_SCALE = 0.1  # of what is summed over a whole episode: a small step of the weights stays a small one


class Reading(NamedTuple):
    """What the network infers for each step of a padded batch."""

    z: Tensor
    """(B, T, z_dim) unit rows: the instrumental value embedding."""
    recurrent: Tensor
    """(B, T) value logit of the head that has read the whole prefix."""
    local: Tensor
    """(B, T) value logit of the head that reads the step and its decayed context."""


class Gains(NamedTuple):
    """What steps add to the outcome, to either of two readers."""

    in_context: Tensor
    """Who knows what came before."""
    own: Tensor
    """Who reads the step and its goal alone."""


class Learned(NamedTuple):
    """What the network says of each step of an episode."""

    z: NDArray[np.float32]
    """(T, z_dim) unit rows: the instrumental value embedding."""
    value: NDArray[np.float32]
    """(T,) in [0, 1], the geometric mean of both value heads."""
    gain: NDArray[np.float32]
    """(T,) what the step adds to the outcome."""


class InstrumentalNet(nn.Module):
    """Causal readers of the same inputs: a GRU over the prefix, a feed-forward one that also gives z, and two
    that say what each step adds.

    The recurrent head credits steps of known goals best; the feed-forward one is steadier on goals it has
    never seen, and cannot be led astray by what happened long ago. Their mean is the value. Gains add up to
    the outcome: each step is paid for itself, which holds best where the goal is new. One of their readers
    knows what came before, the other reads the step and its goal alone, the first `own` inputs (all if
    zero); the gain is their mean.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int = 192,
        z_dim: int = 128,
        dropout: float = 0.2,
        own: int = 0,
    ) -> None:
        super().__init__()
        self.inputs, self.hidden, self.z_dim, self.own = inputs, hidden, z_dim, own or inputs
        self.drop = nn.Dropout(dropout)
        self.recurrent_in = nn.Linear(inputs, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.recurrent_value = nn.Linear(hidden, 1)
        self.local = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout)
        )
        self.local_value = nn.Linear(hidden, 1)
        self.embed = nn.Linear(hidden, z_dim)
        self.gain, self.own_gain = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
            for width in (inputs, self.own)
        )

    @property
    def shape(self) -> dict[str, int]:
        """What rebuilds the network, beside its weights."""
        return {"inputs": self.inputs, "hidden": self.hidden, "z_dim": self.z_dim, "own": self.own}

    def forward(self, inputs: Tensor) -> Reading:
        """(B, T, inputs) -> `Reading`; position t depends on positions up to t only."""
        dropped = self.drop(inputs)
        prefix, _ = self.gru(functional.gelu(self.recurrent_in(dropped)))
        local = self.local(dropped)
        return Reading(
            functional.normalize(self.embed(local), dim=-1),
            self.recurrent_value(self.drop(prefix)).squeeze(-1),
            self.local_value(local).squeeze(-1),
        )

    def gains(self, inputs: Tensor) -> Gains:
        """(..., inputs) -> what each step adds to the outcome, as either reader has it, (...) each."""
        dropped = self.drop(inputs)
        whole, own = self.gain(dropped), self.own_gain(dropped[..., : self.own])
        return Gains(_GAIN_SCALE * whole.squeeze(-1), _GAIN_SCALE * own.squeeze(-1))


def value_loss(reading: Reading, credit: Tensor, mask: Tensor) -> Tensor:
    """Weighted binary cross-entropy of both value heads to the credit y (B, T), over the steps in the mask.

    The last step of an episode weighs `FINAL_WEIGHT`, any other one: its credit is the outcome itself, the
    only thing that was observed, and there is but one of it among all the steps that merely lead there.
    """
    from_end = mask.flip(1).cumsum(1).flip(1)
    weight = torch.where(from_end == 1, FINAL_WEIGHT, 1.0)[mask]
    losses = (
        functional.binary_cross_entropy_with_logits(head[mask], credit[mask], weight, reduction="sum")
        for head in (reading.recurrent, reading.local)
    )
    return sum(losses, torch.zeros((), device=credit.device)) / weight.sum()


class Sample(NamedTuple):
    """Some steps of each of B episodes."""

    inputs: Tensor
    """(B, S, width)."""
    stands_for: Tensor
    """(B, S) how many steps of its episode each stands for; 0 for padding."""
    outcome: Tensor
    """(B,) in [0, 1]."""
    genuine: Tensor
    """(B,) bool, False for a copy that was after something else."""


def sample_steps(
    inputs: Tensor, credit: Tensor, mask: Tensor, genuine: Tensor, most: int | None = SUBSET
) -> Sample:
    """At most so many random steps of each episode of a padded batch (B, T); all if `most` is None."""
    length, size = mask.sum(1), most or mask.shape[1]
    order = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0)
    chosen = functional.pad(order, (0, max(0, size - mask.shape[1])), value=-1.0).topk(size, dim=1)
    rows = chosen.indices.clamp(max=mask.shape[1] - 1)
    inside = chosen.values >= 0.0
    return Sample(
        inputs.gather(1, rows[:, :, None].expand(-1, -1, inputs.shape[2])),
        (length / inside.sum(1))[:, None] * inside,
        credit.gather(1, length[:, None] - 1).squeeze(1),
        genuine,
    )


def decomposition_loss(gain: Tensor, sample: Sample, among: Tensor | None = None) -> Tensor:
    """Randomized return decomposition: gains r of the T steps of an episode add up to its outcome y,

      (y - T / |I| sum_(t in I) r_t)^2,  I a random subset of the steps,

    averaged over the episodes `among` these, (B,) bool, all by default; gain (B, S) is of the steps in the
    sample. Ren et al. 2022, "Learning Long-Term Reward Redistribution via Randomized Return Decomposition",
    https://arxiv.org/abs/2111.13485
    """
    gained = (gain * sample.stands_for).masked_fill(sample.stands_for == 0.0, 0.0).sum(1)
    missed = (sample.outcome - gained).square()
    missed = missed if among is None else missed[among]
    return missed.sum() / max(len(missed), 1)


def retrieval_loss(z: Tensor, credit: Tensor, group: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Leave-out retrieval: predict y_t from the steps of *other* groups,

      p_t = sum_j softmax_j(z_t . z_j / tau) y_j  over j with group_j != group_t,  loss = BCE(p_t, y_t).

    With one group per episode z learns to read a memory that knows the task; with one per task, one that does
    not. z (N, z_dim), credit (N,), group (N,). Steps without any other group carry no loss.
    """
    same = group[:, None] == group[None]
    known = ~same.all(dim=1)
    if not known.any():
        return z.sum() * 0.0
    similarity = (z @ z.T / temperature).masked_fill(same, -torch.inf)[known]
    predicted = (similarity.softmax(dim=1) @ credit).clamp(1e-4, 1.0 - 1e-4)
    return functional.binary_cross_entropy(predicted, credit[known])


@torch.inference_mode()
def read_steps(
    net: InstrumentalNet,
    inputs: NDArray[np.float32],
    counted: NDArray[np.bool_],
    starts: NDArray[np.int64] | None = None,
) -> Learned:
    """What the network says of the steps of one episode, or of those whose first rows are `starts`, (B + 1,)
    with T behind them.

    The recurrent head reads counted steps only; at any other step it keeps the opinion it had.
    """
    device = next(net.parameters()).device
    x = torch.from_numpy(inputs).to(device)
    local = net.local(x)
    bounds = [0, len(counted)] if starts is None else starts.tolist()
    seen = [np.cumsum(counted[start:stop]) for start, stop in pairwise(bounds)]
    lengths = [int(steps.max(initial=0)) for steps in seen]
    # Opinion 0 is that of who has read nothing; then come those of each episode, one for each counted step.
    opinions = net.recurrent_value(x.new_zeros(1, net.hidden)).squeeze(-1)
    firsts = np.cumsum([0, *lengths[:-1]])
    latest = np.concatenate([np.where(n > 0, first + n, 0) for n, first in zip(seen, firsts, strict=True)])
    if any(lengths):
        kept = torch.from_numpy(np.flatnonzero(counted)).to(device)
        read = functional.gelu(net.recurrent_in(x[kept]))
        opinions = torch.cat([opinions, net.recurrent_value(_prefixes(net, read, lengths)).squeeze(-1)])
    recurrent = opinions[torch.from_numpy(latest).to(device)]
    log_value = functional.logsigmoid(recurrent) + functional.logsigmoid(net.local_value(local).squeeze(-1))
    z = functional.normalize(net.embed(local), dim=-1)
    gain = torch.stack(net.gains(x)).mean(0)
    return Learned(z.cpu().numpy(), (0.5 * log_value).exp().cpu().numpy(), gain.cpu().numpy())


def _prefixes(net: InstrumentalNet, read: Tensor, lengths: list[int]) -> Tensor:
    """(T, hidden) states of the recurrent reader after each row; episodes of these lengths are read apart."""
    if len(lengths) == 1:
        return net.gru(read[None])[0][0]
    packed = pack_sequence([part for part in read.split(lengths) if len(part)], enforce_sorted=False)
    return torch.cat(unpack_sequence(net.gru(packed)[0]))


def net_to_arrays(net: InstrumentalNet) -> dict[str, NDArray]:
    """The weights by name, ready for a tensor file."""
    return {name: weight.detach().cpu().numpy() for name, weight in net.state_dict().items()}


def net_from_arrays(shape: dict[str, int], arrays: Mapping[str, NDArray]) -> InstrumentalNet:
    """The inverse of `net_to_arrays`; raises `ValueError` where weights and shape do not fit."""
    net = InstrumentalNet(**shape)
    try:
        net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    except RuntimeError as error:
        raise ValueError(f"the learner's weights do not fit its shape {shape}: {error}") from None
    return net.eval()
