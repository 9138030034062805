"""Every benchmark in turn: what each printed goes to benchmarks/results/NAME.txt.

    python -m benchmarks.run --full | --fast

The data is made by `benchmarks.environments` the first time and kept in benchmarks/data. A full run also
rewrites docs/results and the section of the README between its marks; a fast one reads none of the tasks that
are held out for these, and writes to benchmarks/results alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
DATA = HERE / "data"
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "results"
ENVIRONMENTS = ("textworld", "scienceworld", "minigrid", "crafter")


def commands(fast: bool) -> dict[str, list[str]]:
    """Module and arguments of each benchmark, by name."""
    data = ["--data", str(DATA), "--cache", str(DATA / "embeddings")]
    environments = ["minigrid"] if fast else ["textworld", "minigrid", "scienceworld"]
    episodes = str(DATA / environments[0] / "dev.jsonl.gz")
    few = ["--seeds", "0", "--protocols", "memory"] if fast else []
    compared = (RESULTS if fast else DOCS) / "compare.json"
    smoke = ["--held-out", "dev", "--environments", "minigrid", "--protocols", "memory", "--parts", "table"]
    readme = [] if fast else ["--readme", str(HERE.parent / "README.md")]
    found = {
        "quality": ["benchmarks.quality", *data, "--environments", *environments, *few],
        "compare": ["benchmarks.compare", *data, "--out", str(compared), *(smoke if fast else [])],
        "report": ["benchmarks.report", str(compared), *readme],
        "encoder": ["benchmarks.encoder", episodes, *(["--rollouts", "30"] if fast else [])],
        "store": ["benchmarks.store", *(["--small"] if fast else [])],
        "server": ["benchmarks.server", *(["--seconds", "1", "--rounds", "1"] if fast else [])],
        "rl_minigrid": ["benchmarks.rl_minigrid", *(["--fast"] if fast else [])],
    }
    for name in ("best_of_n", "overoptimise"):
        if importlib.util.find_spec(f"benchmarks.{name}"):
            found[name] = [f"benchmarks.{name}", *(["--fast"] if fast else [])]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--full", action="store_true")
    size.add_argument("--fast", action="store_true", help="a smoke version")
    parser.add_argument("--only", nargs="+", help="names of benchmarks")
    args = parser.parse_args()
    from benchmarks.environments import SPLITS, ensure

    for name in ["minigrid"] if args.fast else ENVIRONMENTS:
        for split in ("train", "dev") if args.fast else SPLITS:
            ensure(name, split, DATA)
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name, command in commands(args.fast).items():
        if args.only and name not in args.only:
            continue
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        (RESULTS / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
        print(
            f"== {name}: {time.perf_counter() - start:.0f} s, exit {done.returncode}\n{done.stdout}",
            flush=True,
        )
        if done.returncode:
            failed.append(name)
            print(done.stderr[-2000:], file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
