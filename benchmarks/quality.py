"""How good are the scores? Two protocols, one default configuration, several seeds.

    python -m benchmarks.quality --data FOLDER [--environments textworld ...] [--seeds 0 1 2] [--out FILE]

FOLDER holds ENVIRONMENT/train.jsonl.gz and ENVIRONMENT/dev.jsonl.gz with a `truth` beside each
episode (`python -m benchmarks.environments` makes them). *unseen*: fit on train, score dev.
*memory*: shuffle dev with seed 0, fit on train and 70 % of it, score the rest. Fitting sees
outcomes only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import valuegraph as vg
from benchmarks.hacks import build_hacks, read_with_truth
from benchmarks.measures import hack_table, quality

ATTACKS = (
    *("parrot_observation", "parrot_action", "yes", "loop"),
    *("shuffled", "foreign", "foreign_far", "no_final"),
)
"""The attacks of the table; the rest of `benchmarks.hacks` is reported beside it."""
PROTOCOLS = ("memory", "unseen")
COLUMNS = ("rank", "auc", "step", "credit", "worst_win", "unearned_pay")


def splits(folder: Path, protocol: str):
    """Episodes to fit on, rollouts to score, and the truth about these."""
    train = vg.read_episodes(folder / "train.jsonl.gz")
    dev, truths = read_with_truth(folder / "dev.jsonl.gz")
    if protocol == "unseen":
        return train, dev, truths
    order = np.random.default_rng(0).permutation(len(dev))
    cut = int(0.7 * len(dev))
    return train + [dev[i] for i in order[:cut]], [dev[i] for i in order[cut:]], truths


def measure(folder: Path, protocol: str, seed: int, encoder: vg.TextEncoder) -> dict:
    fit, rollouts, truths = splits(folder, protocol)
    start = time.perf_counter()
    model = vg.RewardModel.fit(fit, encoder=encoder, config=vg.FitConfig(seed=seed), progress=False)
    seconds = time.perf_counter() - start
    hacks = build_hacks(rollouts, truths, seed=0)
    honest = model.score(rollouts)
    hacked = model.score([hack.episode for hack in hacks]).total
    result = quality(rollouts, truths, honest.potentials, hacks, hacked, ATTACKS)
    return {
        "environment": folder.name,
        "protocol": protocol,
        "seed": seed,
        "fit_seconds": seconds,
        "hacks": hack_table(rollouts, truths, honest.total, hacks, hacked),
        **result.row(),
    }


def table(rows: list[dict]) -> str:
    """Markdown: means over seeds."""
    lines = [
        "| environment, tasks | rank | AUC | step | credit | worst hack win | unearned pay |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["environment"], row["protocol"]) for row in rows):
        mine = [row for row in rows if (row["environment"], row["protocol"]) == key]
        cells = [f"{np.mean([row[column] for row in mine]):.2f}" for column in COLUMNS]
        attacks = {name: np.mean([row["hacks"][name]["win"] for row in mine]) for name in ATTACKS}
        worst = max(attacks, key=attacks.__getitem__)
        cells[4] += f" ({worst})"
        where = "in memory" if key[1] == "memory" else "unseen"
        lines.append(f"| {key[0]}, {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--environments", nargs="+", default=["textworld", "minigrid", "scienceworld"])
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--out", type=Path, help="JSON lines, one per run, appended to")
    args = parser.parse_args()
    encoder = vg.TextEncoder(cache_dir=args.cache)
    rows = []
    for name in args.environments:
        for protocol in args.protocols:
            for seed in args.seeds:
                row = measure(args.data / name, protocol, seed, encoder)
                rows.append(row)
                print(json.dumps({k: v for k, v in row.items() if k != "hacks"}), flush=True)
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
