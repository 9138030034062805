"""Encoder throughput: `TextEncoder` against plain `SentenceTransformer.encode`, over the same rollouts.

    python benchmarks/encoder.py EPISODES [--rollouts 200] [--backend torch onnx int8] [--json]

Both embed rollout after rollout, as they come in. They take turns over slices of the rollouts, so that a
machine that others use slows both alike; `cpu` ratios compare processor time, `wall` ratios time on the
clock. Then each distinct text is embedded once, in few calls (batches of 64 for the plain model), which takes
the cache out of the comparison. Errors are against the plain float32 embeddings, over all distinct texts.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from valuegraph.encoders import TextEncoder, TruncationWarning, step_text
from valuegraph.episodes import Episode, read_episodes
from valuegraph.model_weights import MINILM, find_weights

SLICES = 8
TEXTS_AT_ONCE = 512


class Clock:
    """Wall and processor seconds, summed over calls."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __call__(self, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return result


def slices(items: list[Any], n: int = SLICES) -> list[list[Any]]:
    return [items[i::n] for i in range(n) if items[i::n]]


def plain_model(name: str, max_tokens: int) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_weights(name).folder), device="cpu", local_files_only=True)
    model.max_seq_length = max_tokens
    return model


def compare(plain: Any, name: str, backend: str, episodes: list[Episode]) -> dict[str, Any]:
    def encode(texts: list[str], batch_size: int = 32) -> np.ndarray:
        return plain.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)

    encoder = TextEncoder(name, backend=backend, device="cpu")
    encoder.encode(["loads the model"])
    encode(["and warms up the other"])
    texts = [[step_text(step) for step in episode.steps] for episode in episodes]
    distinct = list(dict.fromkeys(text for rollout in texts for text in rollout))

    ours, theirs = Clock(), Clock()
    for part in slices(list(range(len(episodes)))):
        ours(lambda part=part: [encoder.encode_steps(episodes[i].steps) for i in part])
        theirs(lambda part=part: [encode(texts[i]) for i in part])

    fresh = TextEncoder(name, backend=backend, device="cpu")
    fresh.encode(["loads the model"])
    once, batched = Clock(), Clock()
    for part in slices(distinct[:TEXTS_AT_ONCE], 4):
        once(lambda part=part: fresh.encode(part))
        batched(lambda part=part: encode(part, batch_size=64))

    reference, rows = encode(distinct, batch_size=64), encoder.encode(distinct)
    cosine_error = 1.0 - np.einsum("nd,nd->n", reference, rows)
    steps = sum(map(len, texts))
    some = min(len(distinct), TEXTS_AT_ONCE)
    return {
        "backend": backend,
        "rollouts": len(episodes),
        "steps": steps,
        "distinct texts": len(distinct),
        "ours, steps/s": steps / ours.wall,
        "plain, steps/s": steps / theirs.wall,
        "speed-up per rollout, wall": theirs.wall / ours.wall,
        "speed-up per rollout, cpu": theirs.cpu / ours.cpu,
        "ours, distinct texts/s": some / once.wall,
        "plain, distinct texts/s": some / batched.wall,
        "speed-up of distinct texts, wall": batched.wall / once.wall,
        "speed-up of distinct texts, cpu": batched.cpu / once.cpu,
        "largest difference of a number": float(np.abs(reference - rows).max()),
        "largest cosine error": float(cosine_error.max()),
        "mean cosine error": float(cosine_error.mean()),
        "rows equal when embedded in another order": float(
            np.mean((fresh.encode(distinct[:TEXTS_AT_ONCE][::-1])[::-1] == rows[:some]).all(axis=1))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--rollouts", type=int, default=200, help="how many of them, evenly spread")
    parser.add_argument("--backend", nargs="+", default=["torch"], choices=["torch", "onnx", "int8"])
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)

    episodes = read_episodes(args.episodes)
    episodes = episodes[:: max(1, len(episodes) // args.rollouts)][: args.rollouts]
    plain = plain_model(args.model, TextEncoder(args.model).max_tokens)
    results = [compare(plain, args.model, backend, episodes) for backend in args.backend]
    if args.json:
        print(json.dumps(results))
        return
    for result in results:
        for key, value in result.items():
            print(f"{key:45s} {value:.4g}" if isinstance(value, float) else f"{key:45s} {value}")
        print()


if __name__ == "__main__":
    main()
