"""Train against every reward, try the cures, filter; write JSON, a table and a picture."""

# ruff: noqa: E402 (thread counts are read when numpy and torch load)

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import torch

import benchmarks.overoptimise as about
from benchmarks.overoptimise.games import GAMES, Live, honest_episodes, opened
from benchmarks.overoptimise.report import picture, table
from benchmarks.overoptimise.rewards import EveryStep, Outcome, Reward, Scoring, Untrained
from benchmarks.overoptimise.train import Lab, Point, course
from benchmarks.rivals import GoalCosineLast, Ours
from benchmarks.rivals.networks import Evaluator
from valuegraph import FitConfig, TextEncoder
from valuegraph.encoders import TruncationWarning
from valuegraph.regularize import blend_checkpoints

DOCS = Path(__file__).parents[2] / "docs" / "results"
CURED = "evaluator, untrained"
FILTERED = (CURED, "ours, total")
REPEATED = ("outcome only", "ours, total", "ours, step rewards")
"""What is trained on once more by every other seed: one rollout in a hundred tells them apart."""
BLENDS = (0.25, 0.5, 0.75)


class Prepared(NamedTuple):
    """The laboratory of one seed, and the rewards to train against there."""

    lab: Lab
    rewards: dict[str, Reward]


def prepare(games: Sequence[Live], encoder: TextEncoder, seed: int, epochs: int | None) -> Prepared:
    """Fit scorers on episodes of a seed, clone the start policy; `epochs` of our learner if not as usual."""
    fit, honest = (honest_episodes(games, f"{name}{seed}") for name in ("fit", "honest"))
    ours, untrained, trained, similarity = Ours(seed), Untrained(seed), Evaluator(seed), GoalCosineLast()
    if epochs:
        ours.config = FitConfig(seed=seed, epochs=epochs)
    for scorer in (ours, untrained, trained, similarity):
        scorer.fit(fit, encoder)
    rewards: dict[str, Reward] = {
        CURED: Scoring(untrained),
        "evaluator, trained here": Scoring(trained),
        "goal similarity, every step": EveryStep(similarity),
        "goal similarity, last step": Scoring(similarity),
        "outcome only": Outcome(),
        "ours, total": Scoring(ours),
        "ours, step rewards": Scoring(ours, stepwise=True),
    }
    return Prepared(Lab(games, encoder, ours.model, honest, seed), rewards)


def run(
    games: Sequence[Live],
    encoder: TextEncoder,
    updates: int,
    each: int,
    seeds: Sequence[int] = (0,),
    epochs: int | None = None,
    pool: int = 128,
) -> dict[str, Any]:
    """Everything by the first seed, in `games`, and `REPEATED` by the others: `each` rollouts a game and
    update, `pool` to filter from."""
    start = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {what}", flush=True)

    seed = seeds[0]
    lab, rewards = prepare(games, encoder, seed, epochs)
    say("fitted and cloned")
    curves: dict[str, list[Point]] = {}
    policies, failures = {}, {}
    for name, reward in rewards.items():
        curves[name], policies[name] = lab.train(reward, updates, each)
        failures[name] = lab.dearest_failures(policies[name], reward)
        say(f"{name}: {course(curves[name])}")
    near = f"{CURED}, embedding KL"
    curves[near], _ = lab.train(rewards[CURED], updates, each, near_start=True)
    say(f"{near}: {course(curves[near])}")
    cures = _stopped(curves[CURED])
    for weight in BLENDS:
        policy = lab.start.twin()
        policy.load_state_dict(blend_checkpoints(lab.start, policies[CURED], weight))
        cures[f"weights blended, {weight} of the trained"] = lab.evaluate(policy, rewards[CURED], 2 * each)
    cures["embedding KL, at the end"] = curves[near][-1]
    filtering = {}
    for name in FILTERED:
        found = lab.filtered(rewards[name], pool, [n for n in (1, 4, 16, 64) if n <= pool])
        proxy = found["cloned"]["proxy"]
        equal = min(curves[name], key=lambda p: abs(p.proxy - proxy))
        filtering[name] = {**found, "reinforce_at_equal_proxy": asdict(equal)}
    say("filtered")
    courses = {name: course(points) for name, points in curves.items()}
    repeated = {name: [courses[name]] for name in REPEATED}
    for other in seeds[1:]:
        again = prepare(games, encoder, other, epochs)
        for name in REPEATED:
            repeated[name].append(course(again.lab.train(again.rewards[name], updates, each)[0]))
            say(f"seed {other}, {name}: {repeated[name][-1]}")
    return {
        "games": [live.task for live in games],
        "updates": updates,
        "rollouts_per_game": each,
        "seconds": round(time.perf_counter() - start),
        "courses": courses,
        "seeds": list(seeds),
        "repeated": repeated,
        "cures": {name: asdict(point) for name, point in cures.items()},
        "filtering": filtering,
        "dearest_failures": failures,
        "curves": {name: [asdict(p) for p in points] for name, points in curves.items()},
    }


def _stopped(points: Sequence[Point]) -> dict[str, Point]:
    """Early stopping: where gold is highest, which nobody knows, and before the first alarm."""
    alarm = next((i for i, p in enumerate(points) if p.alarm), len(points))
    return {
        "stopped early, by an oracle": max(points, key=lambda p: p.gold),
        "stopped before the first alarm": points[max(0, alarm - 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=about.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        prog="benchmarks.overoptimise",
    )
    parser.add_argument("--fast", action="store_true", help="two games, three updates")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(6), help="the first runs everything")
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--out", type=Path, help="folder for results; docs/results unless --fast")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=TruncationWarning)
    encoder = TextEncoder(cache_dir=args.cache)
    with ExitStack() as stack:
        lives = list(opened(GAMES[:2] if args.fast else GAMES, stack))
        if args.fast:
            result = run(lives, encoder, 3, 4, args.seeds[:1], epochs=1, pool=16)
        else:
            result = run(lives, encoder, args.updates, 8, args.seeds)
    print(table(result))
    out = args.out or (None if args.fast else DOCS)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "overoptimise.json").write_text(json.dumps(result, allow_nan=False) + "\n")
        (out / "overoptimise.md").write_text(table(result))
        picture(result, out / "overoptimise.svg")


if __name__ == "__main__":
    main()
