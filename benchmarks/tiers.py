"""What faster encoders cost in quality, and what they save: scoring real rollouts with the encoder in.

    python -m benchmarks.tiers --data FOLDER [--environment textworld] [--rollouts 60] [--json]

For each tier a model is fitted (tasks in memory, seed 0, see `benchmarks.quality`) and measured. Then some of
the rollouts are scored by it, from an empty cache and from what the fit has left on disk, in turns with plain
`SentenceTransformer.encode` of each step of theirs, which embeds and scores nothing. `static` is made here of
MiniLM: a table of embeddings of its tokens, as model2vec makes them (Tulkens & van Dongen 2024), for want of
a published one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import valuegraph as vg
from benchmarks.encoder import Clock, plain_model, slices
from benchmarks.hacks import build_hacks
from benchmarks.measures import quality
from benchmarks.quality import ATTACKS, COLUMNS, splits
from valuegraph.embedding_cache import EmbeddingCache
from valuegraph.encoders import step_text
from valuegraph.model_weights import MINILM, find_weights

TIERS = ("torch", "onnx", "int8", "static")


def distilled(plain: Any, folder: Path, width: int = 256) -> str:
    """A static model: each token by itself through the model, principal components, weighted by rarity."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(find_weights(MINILM).folder / "tokenizer.json"))
    words = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    rows = plain.encode([word.removeprefix("##") for word in words], batch_size=256, show_progress_bar=False)
    rows = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows.T @ rows)
    rank = np.arange(2, len(rows) + 2)
    chance = 1.0 / rank / np.sum(1.0 / rank)  # vocabularies are sorted by frequency (Zipf)
    rows = (rows @ axes[:width].T) * (1e-4 / (1e-4 + chance))[:, None]
    SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=rows.astype(np.float32))], device="cpu"
    ).save(str(folder))
    return str(folder)


class PerStep:
    """The encoder of a model, but every step is a call of plain `SentenceTransformer.encode`."""

    def __init__(self, encoder: vg.TextEncoder, plain: Any) -> None:
        self._encoder, self._plain = encoder, plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_steps(self, steps: list[vg.Step], evidence: str = "step") -> np.ndarray:
        return np.concatenate([self.one(step_text(step, evidence)) for step in steps])

    def one(self, text: str) -> np.ndarray:
        return self._plain.encode([text], normalize_embeddings=True, show_progress_bar=False)


def reopened(
    fitted: vg.TextEncoder, texts: list[str], loaded: vg.TextEncoder, folder: Path
) -> vg.TextEncoder:
    """An encoder that finds these texts on disk and nothing in memory, as another process would."""
    encoder = vg.TextEncoder(fitted.id, backend=fitted.backend, device="cpu", cache_dir=folder)
    file = encoder._cache_file()
    assert file is not None
    EmbeddingCache(file).rows(texts, fitted.encode)
    encoder._model = loaded._load()
    return encoder


def measure(
    tier: str, name: str, plain: Any, folder: Path, sample: int, cache: Path | None, config: vg.FitConfig
) -> dict:
    backend = tier if tier in ("onnx", "int8") else "torch"
    fit, rollouts, truths = splits(folder, "memory")
    encoder = vg.TextEncoder(name, backend=backend, device="cpu", cache_dir=cache)
    model = vg.RewardModel.fit(fit, encoder=encoder, config=config, progress=False)
    known = list(encoder._cache._index)  # type: ignore[union-attr]
    hacks = build_hacks(rollouts, truths, seed=0)
    honest = model.score(rollouts)
    hacked = model.score([hack.episode for hack in hacks]).total
    row = quality(rollouts, truths, honest.potentials, hacks, hacked, ATTACKS).row()

    fresh = vg.TextEncoder(name, backend=backend, device="cpu")
    fresh.encode(["loads the model"])
    parts = model.config, model.graph, model._net, model._calibration
    ours, per_step = vg.RewardModel(fresh, *parts), PerStep(fresh, plain)
    some = rollouts[:: max(1, len(rollouts) // sample)][:sample]
    texts = {step_text(step) for rollout in some for step in rollout.steps}
    mine, after, theirs = Clock(), Clock(), Clock()
    with tempfile.TemporaryDirectory() as left:
        again = vg.RewardModel(reopened(encoder, known, fresh, Path(left)), *parts)
        for part in slices(some):
            mine(lambda part=part: ours.score(part))
            after(lambda part=part: again.score(part))
            theirs(lambda part=part: [per_step.encode_steps(rollout.steps) for rollout in part])
    report = {
        "tier": tier,
        **{column: row[column] for column in COLUMNS},
        "rollouts": len(some),
        "steps": sum(len(rollout.steps) for rollout in some),
        "distinct_texts": len(texts),
        "texts_of_the_fit": len(texts.intersection(known)) / len(texts),
        "steps_per_s": sum(len(rollout.steps) for rollout in some) / mine.cpu,
        "speed_up_cpu": theirs.cpu / mine.cpu,
        "speed_up_wall": theirs.wall / mine.wall,
        "speed_up_after_fit_cpu": theirs.cpu / after.cpu,
    }
    if tier != "static":  # whose plain model is another one
        reference = vg.RewardModel(per_step, *parts).score(some)  # type: ignore[arg-type]
        scores = ours.score(some)
        report["largest_score_difference"] = float(
            max(np.abs(a - b).max() for a, b in zip(scores.potentials, reference.potentials, strict=True))
        )
        report["largest_total_difference"] = float(np.abs(scores.total - reference.total).max())
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--environment", default="textworld")
    parser.add_argument("--rollouts", type=int, default=60, help="how many are timed, evenly spread")
    parser.add_argument("--cache", type=Path, help="folder where embeddings are kept")
    parser.add_argument("--tiers", nargs="+", default=list(TIERS), choices=TIERS)
    parser.add_argument("--epochs", type=int, default=vg.FitConfig().epochs, help="of each fit (%(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", vg.encoders.TruncationWarning)
    plain = plain_model(MINILM, vg.TextEncoder().max_tokens)
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for tier in arguments.tiers:
            name = distilled(plain, Path(home) / "static") if tier == "static" else MINILM
            cache = arguments.cache if tier != "static" else None
            folder, config = arguments.data / arguments.environment, vg.FitConfig(epochs=arguments.epochs)
            row = measure(tier, name, plain, folder, arguments.rollouts, cache, config)
            rows.append(row)
            if not arguments.json:
                print(json.dumps(row), flush=True)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
