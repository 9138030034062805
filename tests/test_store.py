"""The store behind the front door: promotion in the background, consolidation, kills of real processes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from valuegraph import ArrayEncoder, Episode, FitConfig, RewardModel, Step

DIM = 8


def walks(count: int, *, seed: int = 0, start: int = 0, length: int = 6) -> list[Episode]:
    """Wins go through numbered places in order, losses in any; every observation is a little different."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(99).normal(size=(length, DIM))
    episodes = []
    for i in range(start, start + count):
        won = i % 2 == 0
        order = np.arange(length) if won else rng.permutation(length)
        points = places[order] + 0.02 * rng.normal(size=(length, DIM))
        steps = tuple(Step(tuple(point.tolist())) for point in points)
        episodes.append(Episode(f"walk {i}", steps, outcome=float(won), terminated=True))
    return episodes


def grown(count: int = 40, **config: object) -> RewardModel:
    model = RewardModel.create(ArrayEncoder(DIM), FitConfig(device="cpu", merge=1.0, **config))  # type: ignore[arg-type]
    model.update(walks(count))
    return model


# --- promotion ---


def test_an_update_promotes_the_index_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from valuegraph import faiss_build, index

    model, going, may_end = grown(), threading.Event(), threading.Event()
    before = model.score(walks(4, seed=1)).total

    def slow_build(*args: object) -> object:
        going.set()
        assert may_end.wait(30)
        return faiss_build.build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "_CPU_LIMITS", ((100, "flat"), (10**9, "flat_fp16")))
    monkeypatch.setattr(index, "build", slow_build)
    model.update(walks(2, seed=2, start=100))
    assert going.wait(30)
    start = time.perf_counter()
    np.testing.assert_allclose(model.score(walks(4, seed=1)).total, before, atol=0.2)  # a reader
    model.update(walks(2, seed=3, start=200))  # and the writer
    assert time.perf_counter() - start < 20.0
    assert model.graph.index.tier == "flat"
    may_end.set()
    model._promotion.join()
    assert model.graph.index.tier == "flat_fp16"
    assert len(model.graph.index) == len(model.graph)
    assert model.index_recall() > 0.95
    model.update(walks(2, seed=4, start=300))
    assert not model._promotion.is_alive()


# --- scoring ---


def test_a_large_memory_asked_at_once_scores_as_a_small_one(
    small_model: RewardModel, heldout_episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = small_model.score(heldout_episodes)
    monkeypatch.setattr("valuegraph.scoring._SMALL", 0)
    at_once = small_model.score(heldout_episodes)
    for name in ("total", "terminal", "instrumental", "support"):
        np.testing.assert_allclose(getattr(at_once, name), getattr(one_by_one, name), atol=1e-4)
