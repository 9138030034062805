"""Best of n by each scorer: does it stay good when the scorer is asked harder and harder?

    python -m benchmarks.best_of_n [--fast] [--data FOLDER] [--out FOLDER] [--environments textworld minigrid]

Every scorer is fitted on outcomes of tasks that are then played anew: train and a part of the held-out
episodes, as in the "memory" protocol of `benchmarks.compare`, as they are and with a quarter of the outcomes
turned round. Of each held-out task there is a *pool*: 320 rollouts of a poor policy (noisy experts that slip
at every third to second step, experts stopped early or led astray, random players), and every attack of
`benchmarks.hacks` on eight of them, about a fifth of the pool. `best_of` then says exactly what the best of
n = 1 to 256 by each scorer is worth in truth. *Gold* is the share of true successes; a hack is worth what it
deserves. *Recite*, the known limit, is left out of the pool, and let in once more for a column of its own.

The same pool is also filtered once: *quantilizers* draw from the best tenth or hundredth.
"""

# ruff: noqa: E402 (thread counts are read when numpy and torch load)

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np

import valuegraph as vg
from benchmarks.compare import FLIPPED, flipped, plain, problem
from benchmarks.environments import SPLITS, ensure
from benchmarks.hacks import build_hacks, read_with_truth
from benchmarks.measures import auc, task_of
from benchmarks.rivals import Ours, Scorer, rivals
from benchmarks.selection import Array, best_of, top_quantile
from examples.make_demo_data import Player, record, roster, tables, write_records
from valuegraph.encoders import TruncationWarning
from valuegraph.episodes import Episode
from valuegraph.monitor import HackingMonitor

DATA = Path(__file__).parent / "data"
DOCS = Path(__file__).parents[1] / "docs" / "results"
PLAYED = ("textworld", "minigrid")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.1, 0.01)
PLAYERS = roster(slips=(0.3, 0.4, 0.5, 0.6), noisy=160, truncated=40, diverted=40, random=80)
HACKED = 8
LIMIT = "recite"
RESAMPLES = 500
WATCHED = 400
Row = dict[str, Any]


class Pool(NamedTuple):
    """Rollouts of one task and what they are truly worth."""

    rollouts: list[Episode]
    success: Array
    progress: Array
    attack: list[str]
    """Of each rollout; empty for an honest one."""


def record_rollouts(environment: str, split: str, players: Sequence[tuple[str, Player]], path: Path) -> None:
    """Every second task of a split played by all of them, truth beside each."""
    from examples.make_demo_data import play_all

    played = []
    if environment == "textworld":
        from benchmarks.environments.textworld_games import GAMES

        for game, world in tables(GAMES[split][::2]):
            played += play_all(world, players, prefix="pool", task=game.task, env=environment)
    else:
        from benchmarks.environments.minigrid_text import ENV_IDS, LAYOUTS, MiniGridWorld, TextMiniGrid

        for env_id in ENV_IDS:
            layout = LAYOUTS[split][0]
            grid = MiniGridWorld(TextMiniGrid(env_id, layout))
            played += play_all(grid, players, prefix="pool", task=f"{env_id}/{layout}", env=environment)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    write_records([record(*one) for one in played], draft)
    draft.replace(path)


def pools(path: Path, hacked: int) -> dict[str, Pool]:
    """By task: the recorded rollouts and hacks of them."""
    rollouts, truths = read_with_truth(path)
    rows: dict[str, list[tuple[Episode, float, float, str]]] = {task_of(e): [] for e in rollouts}
    for e in rollouts:
        truth = truths[e.episode_id]
        rows[task_of(e)].append((e, float(truth.success), truth.final, ""))
    for h in build_hacks(rollouts, truths, seed=0, per_task=hacked):
        rows[h.task].append((h.episode, float(h.still_success), h.true_final, h.attack))
    found = {}
    for task, members in rows.items():
        episodes, success, progress, attack = zip(*members, strict=True)
        found[task] = Pool(list(episodes), np.array(success), np.array(progress), list(attack))
    return found


def chosen(pool: Pool, proxy: Array, chance: Callable[[Array], Array], limit: bool = False) -> list[float]:
    """[gold, true progress, share hacked] of what is chosen; `limit`: with the known limit in the pool."""
    there = np.array([limit or attack != LIMIT for attack in pool.attack])
    weight = chance(proxy[there])
    hacked = np.array([bool(attack) for attack in pool.attack])
    return [float(weight @ what[there]) for what in (pool.success, pool.progress, hacked)]


def curve(pools: Sequence[Pool], proxies: Sequence[Array], sizes: Sequence[int]) -> Row:
    """Means over tasks of what is chosen from their pools, and how gold ends relative to its peak."""

    def over(chance: Callable[[Array], Array], limit: bool = False) -> Array:
        pairs = zip(pools, proxies, strict=True)
        return np.array([chosen(pool, proxy, chance, limit) for pool, proxy in pairs])

    by_size = np.stack([over(lambda p, n=n: best_of(p, n)) for n in sizes])
    mean = by_size.mean(axis=1)
    rng = np.random.default_rng(0)
    tasks = rng.integers(len(pools), size=(RESAMPLES, len(pools)))
    again = by_size[:, tasks, 0].mean(axis=2)
    ratios = again[-1] / np.maximum(again.max(axis=0), 1e-12)
    last = sizes[-1]
    return {
        "gold": mean[:, 0].tolist(),
        "progress": mean[:, 1].tolist(),
        "hacked": mean[:, 2].tolist(),
        "peak": float(mean[:, 0].max()),
        "peak_at": sizes[int(mean[:, 0].argmax())],
        "ratio": float(mean[-1, 0] / max(mean[:, 0].max(), 1e-12)),
        "ratio_interval": np.quantile(ratios, [0.025, 0.975]).tolist(),
        "with_recite": float(over(lambda p: best_of(p, last), limit=True)[:, 0].mean()),
        "quantile": {str(s): float(over(lambda p, s=s: top_quantile(p, s))[:, 0].mean()) for s in SHARES},
    }


def measure(scorer: Scorer, fit: list[Episode], found: dict[str, Pool], encoder: Any, sizes: Any) -> Row:
    """Fit one scorer, and choose by it."""
    start = time.perf_counter()
    scorer.fit(fit, encoder)
    every = [episode for pool in found.values() for episode in pool.rollouts]
    totals = scorer.score(every).totals
    parts = np.split(totals, np.cumsum([len(pool.rollouts) for pool in found.values()])[:-1])
    seconds = time.perf_counter() - start
    return {"scorer": scorer.name, "seconds": seconds, **curve(list(found.values()), parts, sizes)}


def watched(ours: Ours, found: dict[str, Pool]) -> Row:
    """AUROC of the monitor, hacked against honest; half of the honest rollouts are its reference."""
    every = [pair for p in found.values() for pair in zip(p.rollouts, p.attack, strict=True)]
    honest, hacks = [e for e, attack in every if not attack], [pair for pair in every if pair[1]]
    honest, hacks = (part[:: max(1, len(part) // WATCHED)] for part in (honest, hacks))
    monitor = HackingMonitor(ours.model, honest[::2])
    low, high = monitor.read(honest[1::2]), monitor.read([episode for episode, _ in hacks])
    names = np.array([attack for _, attack in hacks])
    by_attack = {a: auc(high.score[names == a], low.score) for a in dict.fromkeys(names.tolist())}
    whole = auc(high.score[names != "no_final"], low.score)
    return {"auroc": whole, "flagged": high.flagged, "false_alarms": low.flagged, "by_attack": by_attack}


def run(
    data: Path, environments: Sequence[str], split: str, encoder: vg.TextEncoder, fast: bool
) -> Iterator[tuple[str, Row]]:
    """("row" or "monitor", what was measured), one after the other."""
    players, hacked = (PLAYERS[:80:4] + PLAYERS[240::8], 2) if fast else (PLAYERS, HACKED)
    for environment in environments:
        for part in ("train", split):
            ensure(environment, part, data)
        path = data / "pools" / f"{environment}-{split}-{len(players)}.jsonl.gz"
        if not path.exists():
            record_rollouts(environment, split, players, path)
        found = pools(path, hacked)
        fit = problem(data / environment, "memory", split).fit
        if fast:
            found = dict(list(found.items())[:3])
            fit = [e for i, e in enumerate(fit) if task_of(e) in found or i % 20 == 0]
        sizes = [n for n in SIZES if n <= min(list(p.attack).count("") for p in found.values())]
        for noise in (0.0, FLIPPED):
            ours = Ours(0)
            scorers = [ours, *(rivals(0)[:2] if fast else rivals(0))]
            if fast:
                ours.config = vg.FitConfig(epochs=1)
            for scorer in scorers:
                row = measure(scorer, flipped(fit, noise), found, encoder, sizes)
                about = {"environment": environment, "noise": noise, "sizes": sizes, "tasks": len(found)}
                yield "row", plain({**about, **row})
            if not noise:
                yield "monitor", plain({"environment": environment, **watched(ours, found)})


def table(document: Row) -> str:
    """Markdown: gold along n and after filtering, one table for each environment and noise."""
    rows, lines = document["rows"], []
    for environment, noise in dict.fromkeys((row["environment"], row["noise"]) for row in rows):
        mine = [row for row in rows if (row["environment"], row["noise"]) == (environment, noise)]
        sizes = mine[0]["sizes"]
        shown = [i for i, n in enumerate(sizes) if n in (1, 4, 16, 64, sizes[-1])]
        heads = [f"n = {sizes[i]}" for i in shown]
        heads += ["of peak", "hacks chosen", "with recite", *(f"best {float(s):.0%}" for s in SHARES)]
        lines += [
            f"{environment}, {mine[0]['tasks']} tasks, {noise:.0%} of the outcomes flipped: gold",
            "",
            "| chosen by | " + " | ".join(heads) + " |",
            "|---" * (len(heads) + 1) + "|",
        ]
        for row in mine:
            low, high = row["ratio_interval"]
            cells = [f"{row['gold'][i]:.2f}" for i in shown]
            cells += [f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"]
            cells += [f"{row['hacked'][-1]:.2f}", f"{row['with_recite']:.2f}"]
            cells += [f"{gold:.2f}" for gold in row["quantile"].values()]
            lines.append(f"| {row['scorer']} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "| the monitor in | AUROC | hacks flagged | honest flagged | hardest attacks |",
        "|---" * 5 + "|",
    ]
    for seen in document["monitor"]:
        hardest = sorted(seen["by_attack"].items(), key=lambda pair: pair[1])[:3]
        words = ", ".join(f"{name} {value:.2f}" for name, value in hardest)
        lines.append(
            f"| {seen['environment']} | {seen['auroc']:.2f} | {seen['flagged']:.2f} | "
            f"{seen['false_alarms']:.2f} | {words} |"
        )
    return "\n".join(lines) + "\n"


def picture(document: Row, path: Path) -> None:
    """Gold along n, a panel for each environment and noise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = document["rows"]
    panels = list(dict.fromkeys((row["environment"], row["noise"]) for row in rows))
    with rc_context({"svg.hashsalt": "valuegraph", "font.size": 8}):
        figure = Figure(figsize=(3.0 * len(panels), 3.2), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (environment, noise) in zip(axes, panels, strict=True):
            mine = [row for row in rows if (row["environment"], row["noise"]) == (environment, noise)]
            for i, row in enumerate(mine):
                ours = row["scorer"] == "ours"
                style = {"lw": 2.0, "color": "black"} if ours else {"lw": 0.8, "color": f"C{i % 10}"}
                axis.plot(row["sizes"], row["gold"], label=row["scorer"], **style)
            axis.set(xscale="log", xlabel="n", ylim=(0, 1.02), title=f"{environment}, {noise:.0%} flipped")
        axes[0].set_ylabel("true success of the best of n")
        axes[-1].legend(fontsize=5)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="three MiniGrid tasks, small pools, few scorers")
    parser.add_argument("--data", type=Path, default=DATA, help="recorded episodes; made where they are not")
    parser.add_argument("--environments", nargs="+", default=list(PLAYED), choices=PLAYED)
    parser.add_argument("--held-out", default="test", choices=SPLITS[1:])
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--out", type=Path, help="folder for results; docs/results unless --fast")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=TruncationWarning)
    logging.getLogger("valuegraph.monitor").setLevel(logging.ERROR)
    environments, split = (["minigrid"], "dev") if args.fast else (args.environments, args.held_out)
    document: Row = {"version": vg.__version__, "held_out": split, "rows": [], "monitor": []}
    encoder = vg.TextEncoder(cache_dir=args.cache or args.data / "embeddings")
    for kind, found in run(args.data, environments, split, encoder, args.fast):
        document["rows" if kind == "row" else kind].append(found)
        if kind == "row":
            names = ("environment", "noise", "scorer", "peak", "ratio", "with_recite", "seconds")
            print(*(found[name] for name in names), sep=" | ", flush=True)
    print(table(document))
    out = args.out or (None if args.fast else DOCS)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in document.pop("rows"))
        head = json.dumps(document, allow_nan=False)[1:-1]
        (out / "best_of_n.json").write_text(f'{{{head}, "rows": [\n{rows}\n]}}\n')
        document = json.loads((out / "best_of_n.json").read_text())
        (out / "best_of_n.md").write_text(table(document))
        picture(document, out / "best_of_n.svg")


if __name__ == "__main__":
    main()
