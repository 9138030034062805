"""A short run in one real game, and what filtering must be worth by its closed forms."""

import itertools
import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch

pytest.importorskip("textworld")

from benchmarks.overoptimise import games, train
from benchmarks.overoptimise.games import GAMES, Run, honest_episodes, noisy_runs, opened
from benchmarks.overoptimise.policy import Policy, Texts, clone, divergence, sample, tensors
from benchmarks.overoptimise.report import picture, table
from benchmarks.overoptimise.rewards import Outcome, advantages
from benchmarks.overoptimise.train import Point, course
from benchmarks.selection import best_of, top_quantile
from examples.make_demo_data import roster

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")


@pytest.fixture(autouse=True)
def few_players(monkeypatch):
    monkeypatch.setattr(games, "PLAYERS", roster(expert=1, noisy=5, random=3))
    monkeypatch.setattr(games, "CLONED", roster(noisy=12))
    monkeypatch.setattr(train, "REFERENCE", 20)


@pytest.fixture(scope="module")
def live():
    with ExitStack() as stack:
        yield next(opened(GAMES[1:2], stack))


@pytest.fixture(scope="module")
def texts(text_encoder):
    return Texts(text_encoder)


def test_best_of_n_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=7), rng.normal(size=7)
    for n in range(1, 8):
        best = [max(subset, key=lambda i: proxy[i]) for subset in itertools.combinations(range(7), n)]
        assert best_of(proxy, n) @ gold == pytest.approx(np.mean(gold[best]))
    assert best_of(np.arange(1000.0), 256)[-1] == pytest.approx(0.256)


def test_ties_are_broken_by_lot():
    gold = np.array([1.0, 0.0, 0.5, 0.0])
    for n in range(1, 5):
        assert best_of(np.zeros(4), n) @ gold == pytest.approx(gold.mean())
    assert top_quantile(np.zeros(4), 0.25) @ gold == pytest.approx(gold.mean())
    with pytest.raises(ValueError, match="best of 5"):
        best_of(gold, 5)
    with pytest.raises(ValueError, match="share"):
        top_quantile(gold, 0.0)


def test_what_is_replayed_is_what_the_game_does(live):
    """The expert's way wins when it is gone with claims in between; claims alone win nothing."""
    expert = next(e for e in honest_episodes([live], "test") if e.outcome)
    run = Run(live)
    for step in expert.steps:
        for action in (live.claims[0], step.action):
            options = live.commands(run.at)
            run.act(options, options.index(action))
    assert run.won
    assert [s.observation for s in run.steps[1::2]] == [s.observation for s in expert.steps]
    assert run.claims == len(expert.steps)
    idle = Run(live)
    while not idle.over:
        idle.act(live.commands(idle.at), len(live.commands(idle.at)) - 1)
    assert not idle.won
    assert len(idle.steps) == live.horizon
    assert idle.episode("x").outcome is None


def test_a_clone_does_what_it_was_shown_and_the_divergence_says_how_far_it_went(live, texts):
    runs = [run for run in noisy_runs([live], 0) if run.won]
    torch.manual_seed(0)
    start = Policy(texts.dim)
    policy = start.twin()
    clone(policy, runs, texts, 25, seed=0)
    drawn = sample(policy, [live], 16, texts, torch.Generator().manual_seed(0))
    control = sample(start, [live], 16, texts, torch.Generator().manual_seed(0))
    assert sum(run.won for run in drawn) > sum(run.won for run in control) + 4
    batch = tensors(drawn, texts)
    assert divergence(start, start, batch) == 0.0
    assert divergence(policy, start, batch) > 1.0


def test_advantages_compare_with_the_other_rollouts_of_the_game(live):
    runs = [Run(live) for _ in range(3)]
    found = advantages(runs, [np.array([1.0, 1.0]), np.array([0.0]), np.array([0.5, 0.0])])
    assert found[0, 0] > 0 > found[1, 0]
    assert found[2, 0] == 0
    assert found[0, 1] == -found[2, 1] > 0
    assert found[1, 1] == 0
    assert Outcome().returns(runs[:1], []) == [pytest.approx(np.zeros(0))]


def points(gold, alarm=None):
    return [Point(i, g, 1 - g, 1 - g, 0.0, float(i), 0.0, 0.0, 0.0, i == alarm) for i, g in enumerate(gold)]


def test_the_course_of_a_collapse():
    found = course(points([0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0], alarm=2))
    assert found["peak_update"] == 3
    assert found["peak"] == pytest.approx(0.56)
    assert (found["first_alarm"], found["alarms"]) == (2, 0.1)
    assert found["halved_update"] == 6
    assert found["end"]["gold"] == 0.0
    assert course(points([0.2, 0.4, 0.6]))["halved_update"] is None


def test_everything_runs_in_one_game(live, text_encoder, tmp_path):
    from benchmarks.overoptimise import __main__ as main

    result = main.run([live], text_encoder, updates=1, each=2, seeds=(0, 1), epochs=1, pool=4)
    assert {len(points) for points in result["curves"].values()} == {2}
    assert "ours, total" in table(result)
    assert [len(courses) for courses in result["repeated"].values()] == [2, 2, 2]
    assert result["repeated"]["ours, total"][0] == result["courses"]["ours, total"]
    assert json.loads(json.dumps(result, allow_nan=False))["games"] == [live.task]
    picture(result, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 1000
