"""Make recorded episodes: `python -m benchmarks.environments textworld minigrid --out data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environments import MODULES, SPLITS, make
from benchmarks.hacks import read_with_truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environments", nargs="+", choices=sorted(MODULES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    options = parser.parse_args()
    for environment in options.environments:
        for split in options.splits:
            path = options.out / environment / f"{split}.jsonl.gz"
            make(environment, split, path)
            episodes, truths = read_with_truth(path)
            won, steps = sum(t.success for t in truths.values()), sum(len(e.steps) for e in episodes)
            print(
                f"{path}: {len(episodes)} episodes, {won} won, {steps} steps, {path.stat().st_size:,} bytes"
            )


if __name__ == "__main__":
    main()
