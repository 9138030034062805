"""Every benchmark in turn: what each printed goes to benchmarks/results/NAME.txt.

    python -m benchmarks.run --full | --fast

What only measures quality runs two at a time, on one thread each, where there are two cores; what measures
time runs alone, after it. The data is made by `benchmarks.environments` the first time and kept in
benchmarks/data. A full run also rewrites docs/results and the sections of the README between their marks; a
fast one reads none of the tasks that are held out for these, and writes to benchmarks/results alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
DATA = HERE / "data"
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "results"
ENVIRONMENTS = ("textworld", "scienceworld", "minigrid", "crafter")
ALONE = ("report", "pressure", "encoder", "store", "store_model", "server")
"""What reads the results of others, and what would be slowed by them."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def commands(fast: bool) -> dict[str, list[str]]:
    """Module and arguments of each benchmark, by name; what takes longest comes first."""
    cache = ["--cache", str(DATA / "embeddings")]
    data = ["--data", str(DATA), *cache]
    environments = ["minigrid"] if fast else ["textworld", "minigrid", "scienceworld"]
    episodes = str(DATA / environments[0] / "dev.jsonl.gz")
    docs = RESULTS if fast else DOCS
    compared = str(docs / "compare.json")
    smoke = ["--held-out", "dev", "--environments", "minigrid", "--protocols", "memory", "--parts", "table"]
    few = ["--protocols", "memory"] if fast else []
    readme = [] if fast else ["--readme", str(HERE.parent / "README.md")]
    small, out = (["--fast"] if fast else []), ["--out", str(docs)]
    return {
        "compare": ["benchmarks.compare", *data, "--out", compared, *(smoke if fast else [])],
        "best_of_n": ["benchmarks.best_of_n", *data, *out, *small],
        "overoptimise": ["benchmarks.overoptimise", *cache, *out, *small],
        "quality": ["benchmarks.quality", *data, "--environments", *environments, "--seeds", "0", *few],
        "rl_minigrid": ["benchmarks.rl_minigrid", *out, *(small or ["--layouts", "0", "2", "4", "7"])],
        "faults": ["benchmarks.faults", *(["--kills", "5", "--damages", "20"] if fast else [])],
        "report": ["benchmarks.report", compared, *readme],
        "pressure": ["benchmarks.pressure", str(docs), *readme],
        "encoder": ["benchmarks.encoder", episodes, *(["--rollouts", "30"] if fast else [])],
        "store": ["benchmarks.store", *(["--small"] if fast else [])],
        "store_model": ["benchmarks.store_model", *(["--small"] if fast else [])],
        "server": ["benchmarks.server", *(["--seconds", "1", "--rounds", "1"] if fast else [])],
    }


def execute(name: str, command: list[str], alone: bool) -> bool:
    """Run one benchmark, print and keep what it said; whether it succeeded."""
    start = time.perf_counter()
    environment = os.environ if alone else {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, check=False
    )
    (RESULTS / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
    head = f"== {name}: {time.perf_counter() - start:.0f} s, exit {done.returncode}"
    print(f"{head}\n{done.stdout}", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr, flush=True)
    return done.returncode == 0


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
    asked = {n: c for n, c in commands(args.fast).items() if not args.only or n in args.only}
    together = [name for name in asked if name not in ALONE]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        passed = list(pool.map(lambda name: execute(name, asked[name], False), together))
    passed += [execute(name, asked[name], True) for name in asked if name in ALONE]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
