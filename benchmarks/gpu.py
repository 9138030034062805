"""The store and the learner on a GPU: do they agree with the processor, and how fast is a search?

    python -m benchmarks.gpu [--size 1000000] [--json]

Not run yet: no GPU could be had when it was written, and no number of it is reported anywhere. It needs a
CUDA device that torch and FAISS both see, with some 6 GB of memory, and says so where there is none.
`--device cpu --size 5000` goes through the same steps without one, to see that they work.

1. For each tier that a GPU holds, the copy on the GPU against the host's own index, after changes as well.
   The host scans what `cagra` reads through a graph, so there the share of neighbours in common is a recall.
2. Exact search in half precision against `(queries @ vectors.T).topk(16)` of torch on the same card, both
   from tensors on the card to tensors on the card: at batch 1024 the aim is at most twice torch's time. The
   same through a graph, at 100,000 vectors and at `--size`, with the seconds that the graph took to build:
   from where on it pays is what `auto` would have to know. Left out where FAISS was built without cuVS.
3. A fit on the packaged text games on the device and on the processor: rank correlation of the scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, K = 384, 16
TIERS = ("flat", "flat_fp16", "ivf_fp16", "ivf_sq8", "cagra")
BATCHES = (1, 64, 1024)


def agreement(tier: str, device: str, size: int) -> dict[str, Any]:
    """Largest difference of a similarity, and share of neighbours in common, fresh and after changes."""
    from benchmarks.store_rivals import recall, vectors
    from valuegraph.index import FaissIndex, index_from_bytes

    points, queries = vectors(size + 1_000, DIM, 256)
    host = FaissIndex(DIM, tier, device="cpu")
    host.add(points[:size], np.arange(size))
    copy = index_from_bytes(host.to_bytes(), device=device)
    assert isinstance(copy, FaissIndex)
    copy.promote(tier)  # a graph would be built in the background
    report: dict[str, Any] = {"tier": tier, "size": size}
    for state in ("fresh", "changed"):
        ours, theirs = (index.search(queries, K) for index in (copy, host))
        report[f"{state}_difference"] = float(np.abs(ours.similarity - theirs.similarity).max())
        report[f"{state}_overlap"] = recall(ours.ids, theirs.ids)
        for index in (copy, host):
            if state == "fresh":
                index.remove(np.arange(0, size, size // 200))
                index.add(points[size:], np.arange(size, size + 1_000))
    return report


def speed(device: str, size: int, tier: str = "flat_fp16", rounds: int = 20) -> dict[str, Any]:
    """Milliseconds of a search through the store and of torch's own, by batch; medians, in turns."""
    import torch

    from benchmarks.store_rivals import vectors
    from valuegraph.index import FaissIndex

    points, queries = vectors(size, DIM, max(BATCHES))
    index = FaissIndex(DIM, tier, device=device)
    index.add(points, np.arange(size))
    start = time.perf_counter()
    index.promote(tier)
    built = time.perf_counter() - start
    kind = torch.float16 if device == "cuda" else torch.float32
    table, asked = (torch.from_numpy(rows).to(device, kind) for rows in (points, queries))

    def on_the_clock(job: Callable[[], Any]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    report: dict[str, Any] = {"tier": tier, "size": size, "build_s": built}
    for batch in BATCHES:
        some = asked[:batch]
        jobs = (
            lambda some=some: index.search_tensor(some.float(), K),
            lambda some=some: (some @ table.T).topk(K, dim=1),
        )
        (_, ours), theirs = jobs[0](), jobs[1]().indices
        shared = (ours[:, :, None] == theirs[:, None, :]).any(dim=2).float().mean()
        times = np.median([[on_the_clock(job) for job in jobs] for _ in range(rounds)], axis=0)
        report[f"batch_{batch}_ms"] = 1e3 * float(times[0])
        report[f"batch_{batch}_ratio_to_torch"] = float(times[0] / times[1])
        report[f"batch_{batch}_overlap"] = float(shared)
    return report


def learner(device: str) -> dict[str, Any]:
    """Seconds to fit, and rank correlation of totals on held-out rollouts with those of a fit on the CPU."""
    from scipy.stats import spearmanr

    import valuegraph as vg

    data = Path(vg.__file__).parent / "data"
    train, held = (vg.read_episodes(data / f"textworld_{part}.jsonl.gz") for part in ("train", "heldout"))
    totals, report = {}, {}
    for place in dict.fromkeys((device, "cpu")):
        encoder = vg.TextEncoder(device=place)
        start = time.perf_counter()
        model = vg.RewardModel.fit(train, encoder, vg.FitConfig(seed=0, device=place), progress=False)
        report[f"fit_{place}_s"] = time.perf_counter() - start
        totals[place] = model.score(held).total
    return {**report, "rank_correlation": float(spearmanr(totals[device], totals["cpu"])[0])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-learner", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from valuegraph.faiss_gpu import gpu_available, has_cagra

    if arguments.device == "cuda" and not gpu_available():
        raise SystemExit("FAISS sees no GPU: nothing was measured")
    device = arguments.device
    few = min(arguments.size, 100_000)
    graphs = device == "cpu" or has_cagra()
    report: dict[str, Any] = {
        "device": device,
        "agreement": [agreement(tier, device, few) for tier in TIERS if graphs or tier != "cagra"],
        "speed": speed(device, arguments.size),
    }
    if graphs:
        report["speed_cagra"] = [speed(device, size, "cagra") for size in sorted({few, arguments.size})]
    else:
        report["cagra"] = "left out: FAISS was built without cuVS"
    if not arguments.no_learner:
        report["learner"] = learner(device)
    print(json.dumps(report, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
