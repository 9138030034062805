"""How far scores and their quality move when a model is consolidated.

    python -m benchmarks.sleep --data FOLDER [--environments textworld ...] [--cache FOLDER] [--json]

Fitted on tasks in memory, seed 0 (see `benchmarks.quality`), and scored; then consolidated without a budget,
to four fifths of its nodes and to half of them, each time from the model as it was fitted, and scored again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

import valuegraph as vg
from benchmarks.hacks import build_hacks
from benchmarks.measures import quality
from benchmarks.quality import ATTACKS, COLUMNS, splits
from valuegraph.consolidation import consolidated
from valuegraph.encoders import TruncationWarning

BUDGETS = (None, 0.8, 0.5)


def measure(folder: Path, encoder: vg.TextEncoder, config: vg.FitConfig) -> list[dict]:
    fit, rollouts, truths = splits(folder, "memory")
    hacks = build_hacks(rollouts, truths, seed=0)
    awake = vg.RewardModel.fit(fit, encoder=encoder, config=config, progress=False)

    def scored(model: vg.RewardModel) -> tuple[vg.Scores, dict]:
        honest, hacked = model.score(rollouts), model.score([hack.episode for hack in hacks]).total
        return honest, quality(rollouts, truths, honest.potentials, hacks, hacked, ATTACKS).row()

    rows, nodes = [], len(awake.graph)
    before, old = scored(awake)
    for share in BUDGETS:
        graph, done = consolidated(awake.graph, None if share is None else int(share * nodes))
        slept = vg.RewardModel(encoder, awake.config, graph, awake._net, awake._calibration)
        after, new = scored(slept)
        moved = np.abs(before.total - after.total)
        steps = np.abs(np.concatenate(before.potentials) - np.concatenate(after.potentials))
        row = {
            "environment": folder.name,
            "budget": share,
            "nodes": nodes,
            "merged": done.merged,
            "pruned": done.pruned,
            "total_moves_at_most": float(moved.max()),
            "total_moves_on_average": float(moved.mean()),
            "potential_moves_at_most": float(steps.max()),
            **{f"{column}_change": float(new[column]) - float(old[column]) for column in COLUMNS},
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--environments", nargs="+", default=["textworld"])
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--epochs", type=int, default=vg.FitConfig().epochs, help="of each fit (%(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)
    encoder = vg.TextEncoder(cache_dir=arguments.cache)
    config = vg.FitConfig(epochs=arguments.epochs)
    rows = [row for name in arguments.environments for row in measure(arguments.data / name, encoder, config)]
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("\n".join(f"{name:26s} {value}" for name, value in row.items()), end="\n\n")


if __name__ == "__main__":
    main()
