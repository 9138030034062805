"""Thin Lightning shells: the training step of `InstrumentalNet` and the batches of episodes it sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from valuegraph.networks import (
    InstrumentalNet,
    Reading,
    Sample,
    decomposition_loss,
    retrieval_loss,
    sample_steps,
    value_loss,
)

__all__ = ["Batch", "EpisodeDataModule", "InstrumentalLearner", "OwnGainLearner", "TrainingSet"]

_REPLAYED = 6  # batches whose sampled steps the gains learn from at once


class Batch(NamedTuple):
    """Padded episodes; steps outside the mask are padding."""

    inputs: Tensor
    """(B, T, width)."""
    credit: Tensor
    """(B, T) credit targets y in [0, 1]."""
    mask: Tensor
    """(B, T) bool."""
    episode: Tensor
    """(B,) number of the episode."""
    task: Tensor
    """(B,) number of the task."""
    genuine: Tensor
    """(B,) bool, False for a copy of an episode that was after something else."""


class TrainingSet(Dataset[tuple[Any, ...]]):
    """Counted steps of episodes as (inputs (T, width), credit (T,), episode, task, genuine); the last
    `copies` of them were after something else."""

    def __init__(
        self,
        rows: Sequence[NDArray[np.int64]],
        inputs: NDArray[np.float32],
        credit: NDArray[np.float32],
        episode: NDArray,
        task: NDArray,
        copies: int = 0,
    ) -> None:
        self._rows = [torch.from_numpy(r) for r in rows]
        self._inputs, self._credit = torch.from_numpy(inputs), torch.from_numpy(credit)
        self._numbers = [(int(e), int(t)) for e, t in zip(episode, task, strict=True)]
        self._genuine = len(rows) - copies
        self.lengths = np.array([len(r) for r in rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int, int, bool]:
        rows = self._rows[i]
        return self._inputs[rows], self._credit[rows], *self._numbers[i], i < self._genuine


class _Buckets(Sampler[list[int]]):
    """Random batches of episodes of similar length, so that little of a batch is padding."""

    def __init__(self, lengths: NDArray, batch_size: int, seed: int) -> None:
        self._lengths, self._size = lengths, batch_size
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._random.permutation(len(self._lengths))
        pools = np.array_split(order, max(1, len(order) // (6 * self._size)))
        order = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        batches = [order[i : i + self._size].tolist() for i in range(0, len(order), self._size)]
        for i in self._random.permutation(len(batches)):
            yield batches[i]


def _collate(items: list[tuple[Tensor, Tensor, int, int, bool]]) -> Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    inputs, credit, episode, task, genuine = zip(*items, strict=True)
    lengths = torch.tensor([len(x) for x in credit])
    padded = pad(list(inputs), batch_first=True)
    return Batch(
        padded,
        pad(list(credit), batch_first=True),
        torch.arange(padded.shape[1])[None] < lengths[:, None],
        torch.tensor(episode),
        torch.tensor(task),
        torch.tensor(genuine),
    )


class EpisodeDataModule(lightning.LightningDataModule):
    """Training and held-out episodes in length-bucketed, seeded batches; no worker processes."""

    def __init__(
        self, train: TrainingSet, validation: TrainingSet | None = None, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        self.train, self.validation, self.batch_size, self.seed = train, validation, batch_size, seed

    @property
    def batches(self) -> int:
        """Training batches in an epoch."""
        return -(-len(self.train) // self.batch_size)

    def train_dataloader(self) -> DataLoader:
        """Batches of similar length, in random order."""
        sampler = _Buckets(self.train.lengths, self.batch_size, self.seed)
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=_collate)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Held-out batches, none if nothing is held out."""
        if not self.validation:
            return []
        return DataLoader(self.validation, batch_size=self.batch_size, collate_fn=_collate)


class InstrumentalLearner(lightning.LightningModule):
    """Trains an `InstrumentalNet` on credit targets: value, leave-out retrieval and decomposition loss.

    Half of the batches leave out the own episode, the other half every episode of the same task. Gains learn
    from steps sampled of the last batches too, for a batch is of episodes of one length. All hyper-parameters
    are scalars, so a checkpoint loads with `weights_only=True`.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int = 192,
        z_dim: int = 128,
        learning_rate: float = 2e-3,
        total_steps: int = 1000,
        seed: int = 0,
        own: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = InstrumentalNet(inputs, hidden, z_dim, own=own)
        self._coin = np.random.default_rng(seed)
        self._recent: deque[Sample] = deque(maxlen=_REPLAYED)

    def forward(self, inputs: Tensor) -> Reading:
        """See `InstrumentalNet`."""
        return self.net(inputs)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The losses of one batch, added up."""
        loss = self._training_loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.task))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Log the loss of one held-out batch, gains summed over all steps."""
        loss, weight = self._held_out_loss(batch)
        self.log("validation_loss", loss, prog_bar=True, batch_size=weight)

    def _training_loss(self, batch: Batch) -> Tensor:
        reading = self.net(batch.inputs)
        group = batch.task if self._coin.random() < 0.5 else batch.episode
        group = group[:, None].expand(batch.mask.shape)[batch.mask]
        retrieval = retrieval_loss(reading.z[batch.mask], batch.credit[batch.mask], group)
        return value_loss(reading, batch.credit, batch.mask) + retrieval + self._sampled_decomposition(batch)

    def _held_out_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """With the weight of the batch: values are averaged over steps."""
        value = value_loss(self.net(batch.inputs), batch.credit, batch.mask)
        return value + self._whole_decomposition(batch), int(batch.mask.sum())

    def _sampled_decomposition(self, batch: Batch) -> Tensor:
        # A batch of long episodes alone would pull what is summed over an episode its way.
        self._recent.append(sample_steps(batch.inputs, batch.credit, batch.mask, batch.genuine))
        return self._decomposition(Sample(*map(torch.cat, zip(*self._recent, strict=True))))

    def _whole_decomposition(self, batch: Batch) -> Tensor:
        return self._decomposition(sample_steps(batch.inputs, batch.credit, batch.mask, batch.genuine, None))

    def _decomposition(self, sample: Sample) -> Tensor:
        """Of both readers. Copies teach the one in context alone: to the other, who sees no more than a step
        and its goal, they would say that no step which serves several goals adds anything."""
        gains = self.net.gains(sample.inputs)
        whole = decomposition_loss(gains.in_context, sample)
        return whole + decomposition_loss(gains.own, sample, sample.genuine)

    def configure_optimizers(self) -> Any:
        """AdamW on a one-cycle schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams["learning_rate"], weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.hparams["learning_rate"],
            total_steps=self.hparams["total_steps"] + 1,
            pct_start=0.1,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OwnGainLearner(InstrumentalLearner):
    """Trains on the reader of gains who sees a step and its goal alone; all else stays as it is.

    It learns the slowest. As many epochs would bind the values to the tasks that they were learned on.
    """

    def _training_loss(self, batch: Batch) -> Tensor:
        return self._sampled_decomposition(batch)

    def _held_out_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """With the weight of the batch: the decomposition is averaged over episodes."""
        return self._whole_decomposition(batch), len(batch.task)

    def _decomposition(self, sample: Sample) -> Tensor:
        return decomposition_loss(self.net.gains(sample.inputs).own, sample, sample.genuine)
