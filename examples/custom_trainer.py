"""Train the learner in a `lightning.Trainer` of your own, then build the reward model around it.

    python examples/custom_trainer.py
    python examples/custom_trainer.py --goals 20 --epochs 15 --out runs/custom

`InstrumentalLearner` and `EpisodeDataModule` are an ordinary LightningModule and LightningDataModule, so that
callbacks, loggers and strategies work with them: here clipped gradients, the best checkpoint and a CSV
log of loss and learning rate. The episodes are the text games that come with the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import valuegraph as vg
from valuegraph.context import learner_width, own_width
from valuegraph.demo import demo_episodes
from valuegraph.fitting import training_sets
from valuegraph.learner import EpisodeDataModule, InstrumentalLearner


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--goals", type=int, default=4, help="how many of the games' goals (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/custom"), help="(%(default)s)")
    args = parser.parse_args()

    episodes, held_out = demo_episodes()
    goals = list(dict.fromkeys(episode.goal for episode in episodes))[: args.goals]
    episodes = [episode for episode in episodes if episode.goal in goals]
    held_out = [episode for episode in held_out if episode.goal in goals]
    encoder = vg.TextEncoder(cache_dir=args.out / "cache")
    config = vg.FitConfig(epochs=args.epochs, seed=0)

    # 1. Embeddings and credit targets, computed once.
    train, validation = training_sets(episodes, encoder, config)
    data = EpisodeDataModule(train, validation, config.batch_size, config.seed)

    # 2. Your own Trainer.
    lightning.seed_everything(config.seed)
    learner = InstrumentalLearner(
        inputs=learner_width(encoder.dim),
        hidden=config.hidden,
        z_dim=config.z_dim,
        learning_rate=config.learning_rate,
        total_steps=args.epochs * data.batches,
        seed=config.seed,
        own=own_width(encoder.dim),
    )
    watched = "validation_loss" if len(validation) else "train_loss"  # of few episodes none is held out
    best = ModelCheckpoint(dirpath=args.out / "checkpoints", monitor=watched)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        logger=CSVLogger(args.out / "logs"),
        callbacks=[best, LearningRateMonitor("step")],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(learner, data)

    # 3. The reward model around the trained network: memory, value graph and calibration.
    learner = InstrumentalLearner.load_from_checkpoint(best.best_model_path)
    model = vg.RewardModel.fit(episodes, encoder, config, net=learner.net)
    model.save(args.out / "model")

    scores = model.score(held_out)
    for name, outcome in (("successes", 1.0), ("failures", 0.0)):
        totals = [t for t, e in zip(scores.total, held_out, strict=True) if e.outcome == outcome]
        print(f"held-out {name}: mean total {sum(totals) / len(totals):.2f} of {len(totals)}")
    print(f"model in {args.out / 'model'}, log in {args.out / 'logs'}")


if __name__ == "__main__":
    main()
