"""How the learner is trained: a Lightning trainer, and nothing that was not asked for on the screen."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from valuegraph.config import FitConfig
from valuegraph.context import learner_width, own_width
from valuegraph.networks import InstrumentalNet

__all__ = ["train_net"]

_BATCHES = 4  # of fewer an epoch goes through its episodes several times
_SETTLED = 900  # batches after which gains of steps by themselves are learned no better
_FURTHER = 2  # times as many epochs in which they are trained on, at most


def train_net(dim: int, train: Any, held_out: Any, config: FitConfig, progress: bool) -> InstrumentalNet:
    """Train with Lightning; the weights with the lowest held-out loss are kept.

    Where that took few batches, and held-out episodes can say how far, one reader is trained on alone.
    """
    import torch
    from lightning.pytorch.callbacks import EarlyStopping

    from valuegraph.learner import EpisodeDataModule, InstrumentalLearner, OwnGainLearner

    data = EpisodeDataModule(train, held_out, config.batch_size, config.seed)
    epochs = config.epochs * -(-_BATCHES // data.batches)
    further = min(_FURTHER * epochs, -(-_SETTLED // data.batches) - epochs)
    with torch.random.fork_rng(), _quiet_lightning():
        torch.manual_seed(config.seed)
        learner = InstrumentalLearner(
            inputs=learner_width(dim),
            hidden=config.hidden,
            z_dim=config.z_dim,
            learning_rate=config.learning_rate,
            total_steps=epochs * data.batches,
            seed=config.seed,
            own=own_width(dim),
        )
        stop = EarlyStopping("validation_loss", patience=config.patience)
        _train(learner, data, epochs, config, progress, stop)
        if held_out and further > 0:
            gains = OwnGainLearner(**{**learner.hparams, "total_steps": further * data.batches})
            gains.net = learner.net
            _train(gains, data, further, config, progress)
    return learner.net.cpu().eval()


def _train(learner: Any, data: Any, epochs: int, config: FitConfig, progress: bool, *callbacks: Any) -> None:
    """Leaves the learner with the weights of the lowest held-out loss, the last ones where nothing is."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(dirpath=folder, monitor="validation_loss")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[config.device],
            devices=1,
            callbacks=[best, *callbacks] if data.validation else [],
            enable_checkpointing=bool(data.validation),
            enable_progress_bar=progress,
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(learner, data)
        if best.best_model_path:
            learner.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hardware found, hardware not found and what else one might install stay unsaid."""
    loggers = [logging.getLogger(f"lightning.{part}.utilities.rank_zero") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
