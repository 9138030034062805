"""The store behind the front door: promotion in the background, consolidation, kills of real processes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from valuegraph import ArrayEncoder, Episode, FitConfig, RewardModel, Step
from valuegraph.consolidation import consolidated

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
    from valuegraph import faiss_build, faiss_store, tiers

    model, going, may_end = grown(), threading.Event(), threading.Event()
    before = model.score(walks(4, seed=1)).total

    def slow_build(*args: object) -> object:
        going.set()
        assert may_end.wait(30)
        return faiss_build.build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tiers, "_CPU_LIMITS", ((100, "flat"), (10**9, "flat_fp16")))
    monkeypatch.setattr(faiss_store, "build", slow_build)
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
    monkeypatch.setattr("valuegraph.scoring._TOGETHER", 5)
    for threads in (1, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        at_once = small_model.score(heldout_episodes)
        assert at_once.episode_ids == one_by_one.episode_ids
        for name in ("total", "terminal", "instrumental", "support"):
            np.testing.assert_allclose(getattr(at_once, name), getattr(one_by_one, name), atol=1e-4)


# --- consolidation ---


def test_forgetting_keeps_the_values_of_what_is_left() -> None:
    model = grown(60)
    graph = model.graph
    copy, report = consolidated(graph, 100, similarity=1.0, worth=0.0, decay=0.0)
    assert (report.nodes, report.pruned, report.merged) == (100, len(graph) - 100, 0)
    assert len(copy) == len(copy.index) == 100
    assert (copy.edges.snapshot().nodes, copy.episodes) == (100, graph.episodes)
    before = {
        key.tobytes(): value
        for key, value in zip(graph.index.reconstruct(np.arange(len(graph))), graph.values, strict=True)
    }
    expected = [before[key.tobytes()] for key in copy.index.reconstruct(np.arange(100))]
    np.testing.assert_allclose(copy.values, expected, atol=1e-4)
    copy.propagate()  # from nothing, too
    np.testing.assert_allclose(copy.values, expected, atol=1e-4)
    copy.column("gone")[:] = copy.column("gone_worth")[:] = 0.0
    copy.propagate()  # control: without what the forgotten were worth
    assert np.abs(copy.values - expected).max() > 0.05
    assert copy.values.max() <= 1.0


def test_what_is_worth_least_is_forgotten_first() -> None:
    model = grown(60)
    copy, _ = consolidated(model.graph, 100, similarity=1.0, worth=0.0)
    on_ways = {node for path in model.graph.paths for node in path.nodes}
    assert len(on_ways) > 100  # so nothing that only failed is left
    texts = {model.graph.texts[node] for node in on_ways}
    assert set(copy.texts) <= texts
    assert copy.paths


def test_twins_merge_and_strangers_do_not() -> None:
    model = grown(2)  # a win and a loss
    loss, win = walks(2)[1], walks(1)[0]
    near = [tuple(float(x) + 0.012 for x in step.observation) for step in win.steps]
    model.update([Episode("again", tuple(Step(x) for x in near), outcome=1.0, terminated=True)])
    before, visits = len(model.graph), model.graph.column("visits").sum()
    scores = model.score([win, loss]).total
    report = model.consolidate(similarity=0.99)
    assert (report.merged, report.pruned) == (6, 0)
    assert (report.nodes, len(model.graph)) == (before - 6, before - 6)
    assert model.graph.column("visits").sum() == visits
    np.testing.assert_allclose(model.score([win, loss]).total, scores, atol=0.1)
    assert model.consolidate(similarity=0.99).merged == 0


def test_edges_that_nobody_used_since_the_last_sleep_fade() -> None:
    model = grown(4)
    asleep = {"similarity": 1.0, "worth": 0.0, "decay": 0.5}
    model.consolidate(**asleep)
    assert model.graph.edges.edges().amounts.min() == 1.0  # all were used since the beginning
    model.update(walks(2, seed=5, start=50))
    new = len(model.graph.rested)
    model.consolidate(**asleep)
    amounts = model.graph.edges.edges().amounts
    assert (amounts[:new] == 0.5).all()
    assert (amounts[new:] == 1.0).all()
    for _ in range(10):
        model.consolidate(**asleep)
    assert len(model.graph.edges) == 0


def test_a_sleep_is_durable_and_a_failed_one_changes_nothing(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = grown(30)
    model.save(tmp_path / "model")
    rollouts = walks(6, seed=9)
    before = model.score(rollouts).total
    with monkeypatch.context() as patch:
        patch.setattr(
            "valuegraph.persistence.os.replace", lambda *args: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match="full"):
            model.consolidate(50)
    np.testing.assert_array_equal(model.score(rollouts).total, before)
    report = model.consolidate(50)
    model.update(walks(2, seed=7, start=400))
    model.close()
    again = RewardModel.load(tmp_path / "model")
    assert report.nodes == 50
    assert len(again.graph) == len(model.graph) == 62
    np.testing.assert_array_equal(again.score(rollouts).total, model.score(rollouts).total)
    np.testing.assert_array_equal(again.graph.values, model.graph.values)


@pytest.mark.parametrize(
    ("name", "number"), [("budget", 0), ("budget", 1.5), ("similarity", 1.5), ("worth", -1.0), ("decay", 2.0)]
)
def test_an_argument_out_of_range_is_named(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=name):
        consolidated(grown(2).graph, **{name: number})  # type: ignore[arg-type]


# --- kills ---


def test_kills_a_full_disk_and_spoiled_files_lose_nothing_unseen() -> None:
    from benchmarks.faults import run

    report = run(5, damages=40)
    assert report["kills"] == 5
    assert report["acknowledged"] > report["acknowledged_before_the_disk_was_full"] > 0
    assert (report["lost"], report["damaged"]) == (0, 0)
    assert report["spoiled_named"] + report["spoiled_harmless"] == 40
