"""Ours and the rivals on the same episodes: tables, attacks, learning curves, flipped outcomes.

    python -m benchmarks.compare --data FOLDER --out FILE.json [--held-out dev] [--environments textworld ...]

FOLDER holds ENVIRONMENT/{train,dev,test}.jsonl.gz (`benchmarks.environments` makes them). *unseen*: fit on
train, score the held-out part. *memory*: fit on train and a part of the held-out episodes, score the
others of the same tasks. Decide on `dev`; `test` is for the table.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import valuegraph as vg
from benchmarks.environments import SPLITS
from benchmarks.environments.crafter_text import includes
from benchmarks.hacks import Hack, Truth, build_hacks, read_with_truth
from benchmarks.intervals import attacks, by_task, with_intervals
from benchmarks.rivals import Ours, Scorer, ablations, rivals
from valuegraph.encoders import TruncationWarning
from valuegraph.episodes import Episode

ENVIRONMENTS = ("textworld", "scienceworld", "minigrid", "crafter")
PROTOCOLS = ("memory", "unseen")
PARTS = ("table", "noise", "curves", "ablations")
SIZES = (10, 30, 100, 300, 1000)
ON_CURVES = ("ours", "goal cosine, last", "episodic control (NEC)", "RUDDER", "step-reward network, last")
FLIPPED = 0.25
_FLIPS = 1  # stream of random numbers
MANY = 20
"""Episodes of a task from which 30 % of them are enough to score; half where there are fewer."""


class Problem(NamedTuple):
    """Episodes to learn from, and what is scored."""

    fit: list[Episode]
    rollouts: list[Episode]
    truths: dict[str, Truth]
    hacks: list[Hack]


def problem(folder: Path, protocol: str, held_out: str = "test") -> Problem:
    """The episodes of one environment and protocol, always the same."""
    train = vg.read_episodes(folder / "train.jsonl.gz")
    held, truths = read_with_truth(folder / f"{held_out}.jsonl.gz")
    if protocol == "memory":
        tasks = {episode.metadata["task"] for episode in held}
        order = np.random.default_rng(0).permutation(len(held))
        cut = int((0.7 if len(held) >= MANY * len(tasks) else 0.5) * len(held))
        train, held = train + [held[i] for i in order[:cut]], [held[i] for i in order[cut:]]
    done = {episode.episode_id: episode.metadata["task"] for episode in held}
    hacks = [
        hack
        for hack in build_hacks(held, truths, seed=0)
        if not (hack.attack.startswith("foreign") and achieved(folder.name, done[hack.base_id], hack.task))
    ]
    return Problem(train, held, truths, hacks)


def achieved(environment: str, done: str, asked: str) -> bool:
    """Whether a success of one task reaches the goal of another on its way, so that it is no foreign success.

    >>> [achieved("crafter", "collect_iron/6", task) for task in ("collect_stone/6", "make_iron_pickaxe/6")]
    [True, False]
    """
    return environment == "crafter" and includes(done.split("/")[0], asked.split("/")[0])


def flipped(episodes: Sequence[Episode], share: float, seed: int = 0) -> list[Episode]:
    """The same episodes, the outcomes of a random share of them turned round: y -> 1 - y.

    Drawn from a stream of its own: a fit that shuffles as many episodes by the same seed would hold out those
    that were turned round, and no others.
    """
    wrong = np.random.default_rng((seed, _FLIPS)).permutation(len(episodes))[: round(share * len(episodes))]
    out = list(episodes)
    for i in wrong:
        out[i] = replace(out[i], outcome=1.0 - float(out[i].outcome or 0.0))
    return out


def measure(scorer: Scorer, task: Problem, encoder: vg.TextEncoder) -> dict[str, Any]:
    """Fit one scorer, score rollouts and hacks, and measure."""
    start = time.perf_counter()
    scorer.fit(task.fit, encoder)
    fitted = time.perf_counter()
    honest = scorer.score(task.rollouts)
    hacked = scorer.score([hack.episode for hack in task.hacks]).totals if task.hacks else ()
    done = time.perf_counter()
    results = by_task(task.rollouts, task.truths, honest.potentials, honest.totals, task.hacks, hacked)
    return {
        "scorer": scorer.name,
        "fit_seconds": round(fitted - start, 2),
        "score_seconds": round(done - fitted, 2),
        "measures": with_intervals(results),
        "attacks": attacks(results),
    }


class Recorder:
    """Rows of results, on disk after each. In a file that exists, what is made anew is replaced."""

    def __init__(self, path: Path, about: dict[str, Any], only: Sequence[str] | None = None) -> None:
        self.path, self.only, self.rows = path, only, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.about = about
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["held_out"] != about["held_out"]:
                raise ValueError(f"{path}: made on {document['held_out']!r}, not on {about['held_out']!r}")
            self.rows = {self._key(row): row for row in document["rows"]}

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(k) for k in ("part", "protocol", "environment", "size", "seed", "scorer"))

    def add(self, scorers: Sequence[Scorer], task: Problem, encoder: vg.TextEncoder, **where: Any) -> None:
        for scorer in scorers:
            if self.only and scorer.name not in self.only:
                continue
            row = plain({**where, "fitted_on": len(task.fit), **measure(scorer, task, encoder)})
            self.rows[self._key(row)] = row
            self.write()
            cells = " ".join(f"{name} {value[0]}" for name, value in row["measures"].items())
            print(*where.values(), "|", scorer.name, "|", cells, f"| {row['fit_seconds']:.0f} s", flush=True)

    def write(self) -> None:
        """One row a line."""
        head = json.dumps(self.about, allow_nan=False)[1:-1]
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in self.rows.values())
        draft = self.path.with_suffix(".tmp")
        draft.write_text(f'{{{head}, "rows": [\n{rows}\n]}}\n', encoding="utf-8")
        draft.replace(self.path)


def plain(value: Any) -> Any:
    """Ready for JSON: four digits are enough, and what is not known is null."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value


def run(args: argparse.Namespace, encoder: vg.TextEncoder, recorder: Recorder) -> None:
    """One part after the other, what matters most first."""
    fitted: dict[tuple[str, int], tuple[Problem, Ours]] = {}
    for protocol in args.protocols:
        for environment in args.environments:
            task = problem(args.data / environment, protocol, args.held_out)
            for seed in args.seeds:
                ours = Ours(seed)
                where = {"environment": environment, "protocol": protocol, "seed": seed}
                if "table" in args.parts:
                    recorder.add([ours, *rivals(seed)], task, encoder, part="table", **where)
                if protocol == "memory":
                    fitted[environment, seed] = task, ours
    for (environment, seed), (task, ours) in fitted.items():
        where = {"environment": environment, "protocol": "memory", "seed": seed}
        if "noise" in args.parts and environment in args.extra:
            noisy = task._replace(fit=flipped(task.fit, FLIPPED, seed))
            recorder.add([Ours(seed), *rivals(seed)], noisy, encoder, part="noise", **where)
        if "curves" in args.parts and environment in args.extra:
            order = np.random.default_rng(seed).permutation(len(task.fit))
            for size in SIZES:
                few = task._replace(fit=[task.fit[i] for i in order[:size]], hacks=[])
                chosen = [s for s in [Ours(seed), *rivals(seed)] if s.name in ON_CURVES]
                recorder.add(chosen, few, encoder, part="curves", size=size, **where)
        if "ablations" in args.parts:
            recorder.add(ablations(ours), task, encoder, part="ablations", **where)
        if "ablations" in args.parts and environment in args.extra:
            blind = Ours(seed, "observation", "ours, observations only")
            recorder.add([blind], task, encoder, part="ablations", **where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="results, JSON; an existing file is added to")
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--held-out", default="test", choices=SPLITS[1:])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--extra", nargs="+", default=["textworld"], help="environments of noise, curves and evidence"
    )
    parser.add_argument("--scorers", nargs="+", help="names; all where not given")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=TruncationWarning)
    about = {"version": vg.__version__, "held_out": args.held_out, "seeds": args.seeds}
    run(args, vg.TextEncoder(cache_dir=args.cache), Recorder(args.out, about, args.scorers))


if __name__ == "__main__":
    main()
