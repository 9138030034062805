"""Kill a process that updates, saves and consolidates a model, again and again, and look for what was lost.

    python -m benchmarks.faults [--kills 200] [--seed 0]

Each child names an episode once `update` has returned. After every SIGKILL the folder must load, verify
without damage and remember every named episode.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

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


def run(kills: int, seed: int = 0) -> dict[str, int]:
    """Counts of kills, acknowledged episodes, lost ones and folders found damaged."""
    from valuegraph import ArrayEncoder, Episode, RewardModel, Step
    from valuegraph.persistence import read_folder, verify_folder

    rng, named, lost, damaged = np.random.default_rng(seed), set(), 0, 0
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        model = RewardModel.create(ArrayEncoder(8))
        model.update([Episode("first", (Step((0.0,) * 8),), outcome=1.0, terminated=True)])
        model.save(folder)
        for k in range(kills):
            child = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(folder), str(k)], stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(float(rng.uniform(0.0, 1.0)))
            child.send_signal(signal.SIGKILL)
            named |= {line.strip() for line in child.stdout if line.endswith("\n")}
            child.stdout.close()
            child.wait()
            damaged += any(finding.damage for finding in verify_folder(folder))
            view = read_folder(folder)
            known = set(view.documents["episodes"])
            for record in view.updates:
                known |= {episode["episode_id"] for episode in json.loads(record.payload)}
            lost += len(named - known)
        RewardModel.load(folder).score([Episode("last", (Step((0.0,) * 8),))])
    return {"kills": kills, "acknowledged": len(named), "lost": lost, "damaged": damaged}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.kills, arguments.seed)))
