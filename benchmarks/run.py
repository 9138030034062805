"""Every benchmark in turn: what each printed goes to benchmarks/results/NAME.txt.

    python -m benchmarks.run --full | --fast

What only measures quality runs two at a time, on one thread each, where there are two cores; what measures
time runs alone, after it (but for `tiers`, whose times are processor seconds in turns). The data is made by
`benchmarks.environments` the first time and kept in benchmarks/data. A full run also rewrites docs/results
and the sections of the README between their marks; a fast one reads none of the tasks that are held out for
these, and writes to benchmarks/results alone. What is measured of the store is gathered in a folder there.
"""

from __future__ import annotations

import argparse
import json
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
STORE = ("tiers", "sleep", "faults", "encoder", "store", "store_model", "lancedb", "gpu", "cluster")
"""What `store_report` reads, as JSON."""
NOT_HERE = ("chroma", "scaling")
"""What it also reads, but no run of ours measures: Chroma wants packages that ours cannot live with, and the
tiers of a shard take too long. Both stay as they were published."""
ALONE = (
    *("report", "pressure", "encoder", "store", "store_model", "lancedb", "server", "gpu", "cluster"),
    "store_report",
)
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
    learnt = [*data, "--json", *(["--epochs", "1"] if fast else [])]
    tiers = ["--environment", "minigrid", "--tiers", "torch", "--rollouts", "5"] if fast else []
    recorded = [
        "--episodes",
        str(DATA / environments[0] / ("dev.jsonl.gz" if fast else "train.jsonl.gz")),
        *cache,
    ]
    made_up = ["--size", "2000", "--rounds", "3", "--nodes", "2000", "--actors", "2"] if fast else []
    store = store_folder(fast)
    return {
        "compare": ["benchmarks.compare", *data, "--out", compared, *(smoke if fast else [])],
        "best_of_n": ["benchmarks.best_of_n", *data, *out, *small],
        "overoptimise": ["benchmarks.overoptimise", *cache, *out, *small],
        "quality": ["benchmarks.quality", *data, "--environments", *environments, "--seeds", "0", *few],
        "rl_minigrid": ["benchmarks.rl_minigrid", *out, *(small or ["--layouts", "0", "2", "4", "7"])],
        "tiers": ["benchmarks.tiers", *learnt, *(tiers or ["--tiers", "torch", "onnx", "int8"])],
        "sleep": ["benchmarks.sleep", *learnt, "--environments", environments[0]],
        "faults": ["benchmarks.faults", *(["--kills", "5", "--damages", "20"] if fast else [])],
        "report": ["benchmarks.report", compared, *readme],
        "pressure": ["benchmarks.pressure", str(docs), *readme],
        "encoder": ["benchmarks.encoder", episodes, "--json", *(["--rollouts", "30"] if fast else [])],
        "store": ["benchmarks.store", "--json", *(["--small"] if fast else [])],
        "store_model": ["benchmarks.store_model", "--json", *(["--small"] if fast else [])],
        "lancedb": ["benchmarks.store_rivals", "lancedb", "--json", *(["--size", "1000"] if fast else [])],
        "gpu": ["benchmarks.gpu", "--json", *(["--size", "20000", "--no-learner"] if fast else [])],
        "cluster": ["benchmarks.cluster", "search", "blocks", "actors", *recorded, *made_up, "--json"],
        "server": ["benchmarks.server", *(["--seconds", "1", "--rounds", "1"] if fast else [])],
        "store_report": [
            "benchmarks.store_report",
            str(store),
            "--out",
            str(store / "report" if fast else docs),
        ],
    }


def store_folder(fast: bool) -> Path:
    """For what is measured of the store; small measurements lie apart, so that none passes for a full one."""
    return RESULTS / ("store_fast" if fast else "store")


def keep(names: tuple[str, ...], folder: Path) -> None:
    """Of measurements that were not made here: those published before, for the next report."""
    published = DOCS / "store.json"
    before = json.loads(published.read_text(encoding="utf-8")) if published.exists() else {}
    for name in names:
        if name in before and not (folder / f"{name}.txt").exists():
            (folder / f"{name}.json").write_text(json.dumps(before[name]), encoding="utf-8")
            print(f"== {name}: not measured here, as published before", flush=True)


def execute(name: str, command: list[str], alone: bool, folder: Path = RESULTS) -> bool:
    """Run one benchmark, print and keep what it said in a folder; whether it succeeded."""
    start = time.perf_counter()
    environment = os.environ if alone else {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, check=False
    )
    (folder / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
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
    from benchmarks.environments import ensure
    from valuegraph.faiss_gpu import gpu_available

    for name in ["minigrid"] if args.fast else ENVIRONMENTS:
        for split in ("train", "dev") if args.fast else ("train", "dev", "test"):
            ensure(name, split, DATA)
    store = store_folder(args.fast)
    (store / "report").mkdir(parents=True, exist_ok=True)
    asked = {n: c for n, c in commands(args.fast).items() if not args.only or n in args.only}
    if "gpu" in asked and not gpu_available():
        print("== gpu: skipped, FAISS sees no GPU", flush=True)
        del asked["gpu"]

    def job(name: str) -> bool:
        if name == "store_report" and not args.fast:
            keep(NOT_HERE if "gpu" in asked else (*NOT_HERE, "gpu"), store)
        return execute(name, asked[name], name in ALONE, store if name in STORE else RESULTS)

    together = [name for name in asked if name not in ALONE]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        passed = list(pool.map(job, together))
    passed += [job(name) for name in asked if name in ALONE]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
