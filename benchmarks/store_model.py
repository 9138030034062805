"""A whole model of 100,000 memories: how long an update and a batch of scores take, and how large it is.

    python -m benchmarks.store_model [--nodes 100000] [--small] [--json]

The encoder's rows are cached. Goals have 16 stages, an episode visits them in order or shuffled, and what it
sees of each is a unit vector near it, 384 wide, as a sentence encoder makes them. One thread, unless
OMP_NUM_THREADS says otherwise; two for a last batch of scores. Times are on the clock; those of the
processor, so named, leave out what a machine that others use makes it wait.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from valuegraph import Episode, FitConfig, RewardModel, Step, TextEncoder
from valuegraph.calibration import Calibration
from valuegraph.context import encode_episodes, learner_width
from valuegraph.embedding_cache import EmbeddingCache
from valuegraph.fitting import visits_of
from valuegraph.graph import ValueGraph
from valuegraph.index import FaissIndex, promote
from valuegraph.networks import InstrumentalNet

DIM, GOALS, STAGES, BATCH = 384, 200, 16, 64
SETTLED = 0.5  # what a step of an episode differs from its stage


class World:
    """Episodes whose texts an encoder has embedded before."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.encoder = TextEncoder()
        self.encoder._cache, self.encoder._dim = EmbeddingCache(), DIM
        self.stages = unit(self.rng.normal(size=(GOALS, STAGES, DIM)))
        self.goals = [f"Reach the end of way number {g}." for g in range(GOALS)]
        self.encoder._cache._remember(self.goals, unit(self.rng.normal(size=(GOALS, DIM))))
        self.told = 0

    def episodes(self, count: int, noise: float = SETTLED) -> list[Episode]:
        rng, made = self.rng, []
        for _ in range(count):
            goal, won = int(rng.integers(GOALS)), bool(rng.random() < 0.5)
            order = np.arange(STAGES) if won else rng.permutation(STAGES)
            rows = unit(self.stages[goal][order] + noise / np.sqrt(DIM) * rng.normal(size=(STAGES, DIM)))
            texts = [f"Sight {self.told + t}." for t in range(STAGES)]
            self.told += STAGES
            self.encoder._cache._remember(texts, rows)  # type: ignore[union-attr]
            made.append(
                Episode(
                    f"episode {self.told}",
                    tuple(map(Step, texts)),
                    goal=self.goals[goal],
                    outcome=float(won),
                    terminated=True,
                )
            )
        return made


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def grown(world: World, nodes: int) -> RewardModel:
    """A model of so many memories, in the tier that suits them; the learner is as large as a fitted one."""
    import torch

    torch.manual_seed(0)
    config = FitConfig(device="cpu")
    net = InstrumentalNet(learner_width(DIM), config.hidden, config.z_dim).eval()
    calibration = Calibration(goal_mid=0.0, goal_spread=0.05)
    # Inverted lists from the start: an exact search for each step would take most of the time to build.
    graph = ValueGraph(DIM, config.z_dim, config, FaissIndex(config.z_dim + 2 * DIM + 1, "ivf_fp16"))
    while len(graph) < nodes:
        episodes = world.episodes(min(1000, -(-(nodes - len(graph)) // STAGES)))
        graph.write(visits_of(episodes, encode_episodes(episodes, world.encoder), calibration, net, graph))
        if graph.index.due and len(graph) > 50_000:  # type: ignore[attr-defined]
            promote(graph.index)
    promote(graph.index)
    return RewardModel(world.encoder, config, graph, net, calibration)


def bench_updates(model: RewardModel, world: World, rounds: int = 9) -> dict[str, Any]:
    """1,000 steps a time, and an episode a time, each durable when it returns."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model.save(Path(folder) / "model")
        report["snapshot_s"] = time.perf_counter() - start
        for name, count in (("1008_steps", 63), ("one_episode", 1)):
            seconds, busy = [], []
            for _ in range(rounds + 1):
                episodes = world.episodes(count)
                start, worked = time.perf_counter(), time.process_time()
                assert model.update(episodes).durable
                seconds.append(time.perf_counter() - start)
                busy.append(time.process_time() - worked)
            typical = float(np.median(seconds[1:]))
            report[f"update_{name}_s"] = typical
            report[f"update_{name}_processor_s"] = float(np.median(busy[1:]))
            report[f"update_{name}_worst_s"] = max(seconds[1:])
            report[f"update_{name}_steps_per_s"] = count * STAGES / typical
        model.close()
    model._bound = None
    return report


def bench_scoring(model: RewardModel, world: World, rounds: int = 7) -> dict[str, Any]:
    """64 rollouts of 16 steps, and nothing but the searches that scoring them asks for."""
    rollouts, index = world.episodes(BATCH), model.graph.index
    asked: list[Callable[[], Any]] = []

    def listening(search: Callable[..., Any]) -> Callable[..., Any]:
        def listened(*arguments: Any) -> Any:
            before, found = len(asked), search(*arguments)
            asked[before:] = [partial(search, *arguments)]  # not what it asks in turn
            return found

        return listened

    model.score(rollouts)  # weighs the landmarks of all ways, which is done once
    for name in ("search", "search_both"):
        setattr(index, name, listening(getattr(index, name)))
    model.score(rollouts)
    for name in ("search", "search_both"):
        delattr(index, name)
    whole, bare, busy = np.empty(rounds), np.empty(rounds), np.empty((rounds, 2))
    for i in range(rounds):
        start, worked = time.perf_counter(), time.process_time()
        model.score(rollouts)
        middle, between = time.perf_counter(), time.process_time()
        for again in asked:
            again()
        whole[i], bare[i] = middle - start, time.perf_counter() - middle
        busy[i] = between - worked, time.process_time() - between
    seconds, searching = float(np.median(whole)), float(np.median(bare))
    return {
        "steps": BATCH * STAGES,
        "steps_per_s": BATCH * STAGES / seconds,
        "seconds": seconds,
        "bare_search_s": searching,
        "ratio_to_bare_search": float(np.median(whole / bare)),
        "processor_s": float(np.median(busy[:, 0])),
        "ratio_to_bare_search_processor": float(np.median(busy[:, 0] / busy[:, 1])),
        "searches": len(asked),
    }


def bench_two_threads(model: RewardModel, world: World, rounds: int = 7) -> dict[str, Any]:
    """The same by two threads, where there are two processors; on the clock."""
    import torch

    rollouts, threads, seconds = world.episodes(BATCH), torch.get_num_threads(), np.empty(rounds)
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        model.score(rollouts)
        for i in range(rounds):
            start = time.perf_counter()
            model.score(rollouts)
            seconds[i] = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return {"steps_per_s": BATCH * STAGES / float(np.median(seconds)), "seconds": float(np.median(seconds))}


def footprint(model: RewardModel) -> dict[str, Any]:
    """Bytes a memory takes in the process, part by part, against its raw vectors in single precision."""
    graph, index = model.graph, model.graph.index
    assert isinstance(index, FaissIndex)
    n = len(graph)
    parts = {
        "vectors_and_lists": len(index.to_bytes()) - index.ids().nbytes,
        "ids": index.ids_nbytes,
        "edges": graph.edges.nbytes,
        "statistics": graph.nodes.nbytes,
        "texts": graph.nodes.texts.nbytes,
    }
    each = {name: size / n for name, size in parts.items()}
    total = sum(each.values())
    return {
        **each,
        "bytes": total,
        "raw_key_bytes": 4 * graph.width,
        "raw_step_embedding_bytes": 4 * graph.dim,
        "limit_of_1.3_raw_keys_and_64": 1.3 * 4 * graph.width + 64,
        "limit_of_1.3_step_embeddings_and_64": 1.3 * 4 * graph.dim + 64,
    }


def run(nodes: int) -> dict[str, Any]:
    world = World()
    start = time.process_time()
    model = grown(world, nodes)
    return {
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "build_s": time.process_time() - start,
        "nodes": len(model.graph),
        "tier": model.graph.index.tier,
        "recall": model.index_recall(),
        "memory": footprint(model),
        "scoring": bench_scoring(model, world),
        "updates": bench_updates(model, world),
        "two_threads": bench_two_threads(model, world),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--small", action="store_true", help="a smoke version")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = run(3_000 if arguments.small else arguments.nodes)
    if arguments.json:
        print(json.dumps(report))
        return
    from benchmarks.store import show

    show(report)


if __name__ == "__main__":
    main()
