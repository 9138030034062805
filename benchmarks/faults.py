"""Kill a process that updates, saves and consolidates a model, fill its disk, spoil its files; what was lost?

    python -m benchmarks.faults [--kills 200] [--damages 300] [--seed 0]

Each child names an episode once `update` has returned. After every SIGKILL the folder must load, verify
without damage and remember every named episode. The same once a child may write no longer files, so that its
disk is as good as full. Then single bits are flipped in copies of the folder, and files cut short: whatever
loads in spite of it must hold what the intact folder holds, and the error must name the file otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
"""

WRITER = """
import sys, numpy as np
from valuegraph import ArrayEncoder, Episode, RewardModel, Step
folder, seed = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(seed)
model = RewardModel.load(folder)
print("ready", flush=True)
for i in range(10**6):
    steps = tuple(Step(tuple(rng.normal(size=8).tolist())) for _ in range(6))
    name = f"{seed}-{i}"
    model.update([Episode(name, steps, outcome=float(i % 2), terminated=True)])
    print(name, flush=True)
    if i % 5 == 3:
        model.save(folder)
    if i % 7 == 5:
        model.consolidate(2000)
"""


def run(kills: int, seed: int = 0, damages: int = 0) -> dict[str, int]:
    """Counts of kills, acknowledged episodes, lost ones, folders found damaged; and of what damage did."""
    from valuegraph import ArrayEncoder, Episode, RewardModel, Step

    rng, named, report = np.random.default_rng(seed), set[str](), dict.fromkeys(("lost", "damaged"), 0)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        model = RewardModel.create(ArrayEncoder(8))
        model.update([Episode("first", (Step((0.0,) * 8),), outcome=1.0, terminated=True)])
        model.save(folder)
        for k in range(kills):
            named |= _written(folder, k, float(rng.uniform(0.0, 1.0)))
            _check(folder, named, report)
        if damages:
            full = _written(folder, kills, None)
            named |= full
            report["acknowledged_before_the_disk_was_full"] = len(full)
            _check(folder, named, report)
            report |= _spoil(folder, damages, rng)
        RewardModel.load(folder).score([Episode("last", (Step((0.0,) * 8),))])
    return {"kills": kills, "acknowledged": len(named), **report}


def _written(folder: Path, seed: int, seconds: float | None) -> set[str]:
    """What a child has acknowledged: until it is killed after so long, or until it can write no more."""
    limit = "" if seconds is not None else FULL
    child = subprocess.Popen(
        [sys.executable, "-c", limit + WRITER, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        stderr=None if seconds is not None else subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    if seconds is not None:
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    said, failure = child.communicate()
    assert seconds is not None or "OSError" in failure, failure
    return set(said.split("\n")[:-1])  # the last line may be half a name


def _check(folder: Path, named: set[str], report: dict[str, int]) -> None:
    from valuegraph.persistence import verify_folder

    report["damaged"] += any(finding.damage for finding in verify_folder(folder))
    report["lost"] += len(named - _episodes(folder))


def _episodes(folder: Path) -> set[str]:
    from valuegraph.persistence import read_folder

    view = read_folder(folder)
    logged = [json.loads(record.payload) for record in view.updates]
    return set(view.documents["episodes"]) | {e["episode_id"] for episodes in logged for e in episodes}


def _spoil(folder: Path, damages: int, rng: np.random.Generator) -> dict[str, int]:
    """A bit flipped, or a file cut short, in so many copies."""
    from valuegraph.persistence import ModelFolderError

    intact, counts = _episodes(folder), dict.fromkeys(("named", "harmless", "silent", "unnamed"), 0)
    files = sorted(path.name for path in folder.iterdir() if path.stat().st_size)
    for _ in range(damages):
        name = files[rng.integers(len(files))]
        with tempfile.TemporaryDirectory() as parent:
            copy = Path(shutil.copytree(folder, Path(parent) / "model"))
            data = bytearray((copy / name).read_bytes())
            place = int(rng.integers(len(data)))
            if rng.random() < 0.5:
                data[place] ^= 1 << int(rng.integers(8))
            else:
                del data[place:]
            (copy / name).write_bytes(data)
            try:
                outcome = "harmless" if _episodes(copy) == intact else "silent"
            except ModelFolderError as error:
                outcome = "named" if name in str(error) else "unnamed"
            counts[outcome] += 1
    return {f"spoiled_{outcome}": count for outcome, count in counts.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.kills, arguments.seed, arguments.damages)))
