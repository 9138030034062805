"""The Lightning shells: batches, a Trainer of one's own, checkpoints, early stopping, one seed one result."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from valuegraph.config import FitConfig
from valuegraph.context import learner_width
from valuegraph.episodes import Episode, Step
from valuegraph.fitting import split, training_sets
from valuegraph.learner import Batch, EpisodeDataModule, InstrumentalLearner, OwnGainLearner, TrainingSet
from valuegraph.networks import (
    InstrumentalNet,
    decomposition_loss,
    net_to_arrays,
    read_steps,
    sample_steps,
    value_loss,
)
from valuegraph.training import train_net

pytestmark = [
    # Lightning's advice about loaders and its own use of torch are not about this code.
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]

DIM = 4
WIDTH = learner_width(DIM)
CONFIG = FitConfig(epochs=4, hidden=8, z_dim=4, batch_size=8, learning_rate=1e-2, device="cpu")


def toy(episodes: int = 24, *, seed: int = 0, upside_down: bool = False, copies: int = 0) -> TrainingSet:
    """Episodes whose first input says how they end; `upside_down` says the opposite of the others."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, episodes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    won = rng.random(episodes) < 0.5
    inputs = rng.standard_normal((starts[-1], WIDTH)).astype(np.float32)
    inputs[:, 0] = np.repeat(np.where(won, 2.0, -2.0), lengths)
    credit = np.repeat((won != upside_down).astype(np.float32), lengths)
    rows = [np.arange(a, b) for a, b in pairwise(starts)]
    return TrainingSet(rows, inputs, credit, np.arange(episodes), rng.integers(0, 3, episodes), copies)


def whole(data: TrainingSet) -> Batch:
    (batch,) = EpisodeDataModule(data, data, batch_size=len(data)).val_dataloader()
    return batch


def loss_on(net: InstrumentalNet, data: TrainingSet) -> float:
    batch = whole(data)
    with torch.inference_mode():
        return value_loss(net(batch.inputs), batch.credit, batch.mask).item()


def same_weights(a: InstrumentalNet, b: InstrumentalNet) -> bool:
    left, right = net_to_arrays(a), net_to_arrays(b)
    return all(np.array_equal(left[name], right[name]) for name in left)


def trainer(tmp_path, **options) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )


# --- batches ---


def test_every_episode_is_in_one_batch_of_an_epoch_with_its_own_steps() -> None:
    data = toy(30, copies=4)
    module = EpisodeDataModule(data, batch_size=8)
    batches = list(module.train_dataloader())
    assert len(batches) == module.batches == len(module.train_dataloader()) == 4
    seen = []
    for batch in batches:
        assert isinstance(batch, Batch)
        for row, (number, task) in enumerate(zip(batch.episode.tolist(), batch.task.tolist(), strict=True)):
            inputs, credit, episode, its_task, genuine = data[number]
            assert (episode, its_task, genuine) == (number, task, bool(batch.genuine[row]))
            assert genuine == (number < 26)
            mask = batch.mask[row]
            assert int(mask.sum()) == len(credit) == data.lengths[number]
            assert mask[: len(credit)].all()
            assert torch.equal(batch.inputs[row][mask], inputs)
            assert torch.equal(batch.credit[row][mask], credit)
            seen.append(number)
    assert sorted(seen) == list(range(30))


def test_batches_are_seeded_shuffled_and_of_similar_length() -> None:
    data = toy(200)

    def order(seed: int) -> list[list[int]]:
        return [
            b.episode.tolist() for b in EpisodeDataModule(data, batch_size=8, seed=seed).train_dataloader()
        ]

    assert order(1) == order(1) != order(2)
    loader = EpisodeDataModule(data, batch_size=8).train_dataloader()
    assert [b.episode.tolist() for b in loader] != [b.episode.tolist() for b in loader]
    waste = np.mean([1.0 - batch.mask.float().mean().item() for batch in loader])
    plain = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, collate_fn=loader.collate_fn)
    unsorted = np.mean([1.0 - batch.mask.float().mean().item() for batch in plain])
    assert waste < 0.6 * unsorted


def test_without_held_out_episodes_there_is_no_validation() -> None:
    assert EpisodeDataModule(toy(4)).val_dataloader() == []
    assert EpisodeDataModule(toy(4), toy(0)).val_dataloader() == []


@pytest.mark.parametrize(("episodes", "held"), [(0, 0), (1, 0), (49, 0), (50, 5), (100, 10)])
def test_the_split_is_a_partition(episodes: int, held: int) -> None:
    train, held_out = split(episodes, FitConfig())
    assert len(held_out) == held
    assert sorted([*train, *held_out]) == list(range(episodes))
    assert all(np.array_equal(part, np.sort(part)) for part in (train, held_out))
    again = split(episodes, FitConfig())
    assert np.array_equal(train, again[0])
    if held:
        assert not np.array_equal(held_out, split(episodes, FitConfig(seed=1))[1])


# --- training ---


def test_training_learns_what_there_is_to_learn() -> None:
    data, fresh = toy(60), toy(30, seed=1)
    config = FitConfig(**{**CONFIG.to_dict(), "epochs": 15})
    one = train_net(DIM, data, toy(10, seed=2), config, progress=False)
    torch.manual_seed(0)
    untrained = InstrumentalNet(WIDTH, CONFIG.hidden, CONFIG.z_dim).eval()
    assert not one.training
    assert loss_on(one, fresh) < 0.5 * loss_on(untrained, fresh)


FIT = """
import valuegraph as vg
steps = [tuple(vg.Step((float(t), float(i)), "go") for t in range(3)) for i in range(60)]
episodes = [vg.Episode(str(i), walked, outcome=i % 2) for i, walked in enumerate(steps)]
vg.RewardModel.fit(episodes, vg.ArrayEncoder(2), vg.FitConfig(epochs=1), progress=False)
"""
TRAINER = "import lightning; lightning.Trainer(logger=False, accelerator='cpu')"


def test_a_fit_says_nothing_that_was_not_asked_for() -> None:
    """In a process of its own, for libraries speak through handlers; a bare trainer shows that they do."""
    for code, silent in ((FIT, True), (TRAINER, False)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout + done.stderr == "") == silent


def test_one_seed_one_result_and_nobody_elses_random_numbers_are_touched() -> None:
    data, held = toy(), toy(6, seed=1)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = train_net(DIM, data, held, CONFIG, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    two = train_net(DIM, data, held, CONFIG, progress=False)
    other = train_net(DIM, data, held, FitConfig(**{**CONFIG.to_dict(), "seed": 1}), progress=False)
    assert same_weights(one, two)
    assert not same_weights(one, other)


def test_training_stops_early_and_keeps_the_best_weights(monkeypatch) -> None:
    """The held-out episodes say the opposite, so every epoch of learning makes them worse."""
    epochs = []
    monkeypatch.setattr(
        InstrumentalLearner,
        "on_train_epoch_end",
        lambda self: type(self) is InstrumentalLearner and epochs.append(self.current_epoch),
        raising=False,
    )
    config = FitConfig(**{**CONFIG.to_dict(), "epochs": 12, "patience": 2})
    data, contrary = toy(32), toy(12, seed=1, upside_down=True)
    stopped = train_net(DIM, data, contrary, config, progress=False)
    assert len(epochs) < 12
    epochs.clear()
    to_the_end = train_net(DIM, data, toy(0), config, progress=False)  # control: nobody objects
    assert len(epochs) == 12
    assert loss_on(stopped, contrary) < loss_on(to_the_end, contrary)
    epochs.clear()
    train_net(DIM, data, toy(12, seed=1), config, progress=False)  # nor do episodes that agree
    assert len(epochs) > 4


def test_few_episodes_are_gone_through_more_often(monkeypatch) -> None:
    steps = []
    monkeypatch.setattr(
        InstrumentalLearner, "on_train_batch_end", lambda self, *_: steps.append(1), raising=False
    )
    for episodes, expected in [(3, 4 * 4), (20, 3 * 8), (32, 4 * 4), (40, 5 * 4)]:
        steps.clear()
        train_net(DIM, toy(episodes), toy(0), CONFIG, progress=False)
        assert len(steps) == expected


def own_loss(net: InstrumentalNet, data: TrainingSet) -> float:
    batch = whole(data)
    with torch.inference_mode():
        sample = sample_steps(batch.inputs, batch.credit, batch.mask, batch.genuine, None)
        return decomposition_loss(net.gains(sample.inputs).own, sample).item()


@pytest.mark.parametrize(
    ("settled", "held", "expected"), [(900, 6, 2 * 8 * 3), (30, 6, 2 * 3), (24, 6, 0), (900, 0, 0)]
)
def test_gains_of_steps_by_themselves_are_trained_on(monkeypatch, settled, held, expected) -> None:
    """Three batches, four passes of two epochs each; without held-out episodes nobody says where to stop."""
    steps = []
    monkeypatch.setattr(OwnGainLearner, "on_train_batch_end", lambda self, *_: steps.append(1), raising=False)
    monkeypatch.setattr("valuegraph.training._SETTLED", settled)
    train_net(DIM, toy(24), toy(held, seed=1), CONFIG, progress=False)
    assert len(steps) == expected


def test_training_on_moves_the_gains_of_steps_by_themselves_and_nothing_else(monkeypatch) -> None:
    data, held = toy(60), toy(20, seed=1)
    on = train_net(DIM, data, held, CONFIG, progress=False)
    monkeypatch.setattr("valuegraph.training._FURTHER", 0)
    before = train_net(DIM, data, held, CONFIG, progress=False)
    left, right = net_to_arrays(before), net_to_arrays(on)
    moved = {name.partition(".")[0] for name in left if not np.array_equal(left[name], right[name])}
    assert moved == {"own_gain"}
    assert own_loss(on, held) < own_loss(before, held)


def test_half_of_the_batches_leave_out_the_task(monkeypatch) -> None:
    groups = []

    def spy(z, credit, group):
        groups.append(group)
        return z.sum() * 0.0

    monkeypatch.setattr("valuegraph.learner.retrieval_loss", spy)
    learner = InstrumentalLearner(WIDTH, 8, 4)
    monkeypatch.setattr(learner, "log", lambda *_, **__: None)
    (batch,) = EpisodeDataModule(toy(12), batch_size=12).train_dataloader()
    for i in range(60):
        learner.training_step(batch, i)
    per_step = {
        name: getattr(batch, name)[:, None].expand(batch.mask.shape)[batch.mask]
        for name in ("task", "episode")
    }
    kinds = ["task" if torch.equal(group, per_step["task"]) else "episode" for group in groups]
    assert all(torch.equal(group, per_step[kind]) for group, kind in zip(groups, kinds, strict=True))
    assert 15 < kinds.count("task") < 45


# --- in a Trainer of one's own ---


def episodes(n: int = 24) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            str(i),
            tuple(Step(tuple(rng.standard_normal(2))) for _ in range(rng.integers(1, 6))),
            goal="ab"[i % 2],
            outcome=float(i % 3 == 0),
        )
        for i in range(n)
    ]


def test_a_trainer_of_ones_own_with_checkpoints_that_load_without_pickle(tmp_path) -> None:
    from valuegraph.encoders import ArrayEncoder

    encoder = ArrayEncoder(2, features=8)
    train, held = training_sets(episodes(60), encoder, CONFIG)
    assert len(held) == 6
    assert 54 < len(train) <= 54 + 20  # some of the twenty successes come a second time, with another goal
    assert [train[i][-1] for i in range(len(train))] == [True] * 54 + [False] * (len(train) - 54)
    data = EpisodeDataModule(train, held, batch_size=8)
    torch.manual_seed(0)
    learner = InstrumentalLearner(learner_width(encoder.dim), 8, 4, total_steps=2 * data.batches)
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor="validation_loss")
    host = trainer(
        tmp_path, max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True, num_sanity_val_steps=0
    )
    host.fit(learner, data)
    assert {"train_loss", "validation_loss"} <= set(host.callback_metrics)
    assert host.global_step == 2 * data.batches

    stored = torch.load(checkpoint.best_model_path, weights_only=True)
    assert all(isinstance(value, int | float) for value in stored["hyper_parameters"].values())
    host.save_checkpoint(tmp_path / "last.ckpt")
    again = InstrumentalLearner.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert same_weights(learner.net, again.net)
    reading = again.eval()(torch.zeros(1, 2, learner_width(encoder.dim)))
    assert reading.z.shape == (1, 2, 4)


def test_early_stopping_of_the_host_works_on_the_logged_loss(tmp_path) -> None:
    data = EpisodeDataModule(toy(), toy(12, seed=1, upside_down=True), batch_size=8)
    torch.manual_seed(0)
    learner = InstrumentalLearner(WIDTH, 8, 4, learning_rate=1e-2, total_steps=30 * data.batches)
    host = trainer(tmp_path, max_epochs=30, callbacks=[EarlyStopping("validation_loss", patience=2)])
    host.fit(learner, data)
    assert host.current_epoch < 29


def test_gains_are_what_each_kind_of_step_adds() -> None:
    """Two kinds of step add .5 each, four add nothing; only the sum over an episode is ever told."""
    rng = np.random.default_rng(0)
    kinds = [np.sort(rng.permutation(6)[: rng.integers(1, 7)]) for _ in range(300)]
    starts = np.concatenate([[0], np.cumsum([len(k) for k in kinds])])
    inputs = np.zeros((starts[-1], WIDTH), np.float32)
    inputs[np.arange(starts[-1]), np.concatenate(kinds)] = 3.0
    outcome = np.array([0.5 * (k < 2).sum() for k in kinds], np.float32)
    rows = [np.arange(a, b) for a, b in pairwise(starts)]
    data = TrainingSet(rows, inputs, np.repeat(outcome, np.diff(starts)), np.arange(300), np.arange(300) % 3)
    net = train_net(
        DIM, data, TrainingSet([], inputs, outcome, outcome, outcome), replace(CONFIG, epochs=30), False
    )
    learned = read_steps(net, 3.0 * np.eye(6, WIDTH, dtype=np.float32), np.ones(6, np.bool_))
    assert learned.gain[:2].min() > 0.25  # a net that drops inputs and steps claims less than there is
    assert np.abs(learned.gain[2:]).max() < 0.12
    # Control: the value of a step is that of the episodes it occurs in, whoever brought them there.
    assert learned.value[2:].min() > 0.2


def test_only_steps_that_count_are_trained_on() -> None:
    from valuegraph.encoders import ArrayEncoder

    looping = [
        Episode("loop", (Step((0.0, 1.0)),) * 5 + (Step((1.0, 0.0)),), outcome=1.0),
        Episode("plain", (Step((3.0, 1.0)), Step((1.0, 0.0))), outcome=0.0),
    ]
    train, held = training_sets(looping, ArrayEncoder(2, features=8))
    assert len(held) == 0
    assert [len(train[i][1]) for i in range(len(train))] == [2, 2]
    credit = train[0][1]
    gamma = FitConfig().gamma
    assert credit.tolist() == pytest.approx([gamma**5, 1.0])
