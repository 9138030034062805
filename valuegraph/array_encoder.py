"""Vector observations as unit vectors whose cosine is a kernel: random Fourier features, or themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from valuegraph.episodes import Episode, EpisodeError, Step
from valuegraph.evidence import check_evidence


class ArrayEncoder:
    """Vector observations -> unit rows whose cosine is a kernel of the vectors.

    kernel "rbf": cosine ~ k(x, y) = exp(-||s(x) - s(y)||^2 / (2 bandwidth^2)) with s(x) = (x - mean) / scale.
        phi(x) = sqrt(2/features) [cos(W s(x)), sin(W s(x))], W ~ N(0, bandwidth^-2), has this expectation and
        standard error (1 - k^2) / sqrt(features): random Fourier features, Rahimi and Recht, Random Features
        for Large-Scale Kernel Machines, 2007.
    kernel "cosine": phi(x) = x / ||x||, for vectors that are embeddings already (mean, scale, features and
        bandwidth play no part); the zero vector stays zero.

    A goal or an action is only a name here: a random unit vector drawn from the sha256 of its text. A step's
    observation is what its action led to, so evidence "step" and "observation" are one; "action" is the name.

    width: numbers in an observation. features: even, the width of the embedding for kernel "rbf".
    bandwidth: in standard deviations; None is sqrt(width). mean, scale: (width,), scale > 0.
    """

    def __init__(
        self,
        width: int,
        *,
        features: int = 256,
        bandwidth: float | None = None,
        mean: Sequence[float] | np.ndarray | None = None,
        scale: Sequence[float] | np.ndarray | None = None,
        seed: int = 0,
        kernel: str = "rbf",
    ) -> None:
        if kernel not in ("rbf", "cosine"):
            raise ValueError(f"kernel={kernel!r}, expected 'rbf' or 'cosine'")
        if width < 1 or features < 2 or features % 2:
            raise ValueError(f"width={width} must be positive and features={features} positive and even")
        self.width = width
        self.features = features
        self.bandwidth = float(np.sqrt(width)) if bandwidth is None else float(bandwidth)
        self.mean = np.zeros(width) if mean is None else np.array(mean, np.float64)
        self.scale = np.ones(width) if scale is None else np.array(scale, np.float64)
        self.seed = seed
        self.kernel = kernel
        if self.mean.shape != (width,) or self.scale.shape != (width,):
            raise ValueError(f"mean {self.mean.shape} and scale {self.scale.shape} must both be ({width},)")
        if not (self.bandwidth > 0 and np.all(self.scale > 0) and np.all(np.isfinite(self.mean))):
            raise ValueError("bandwidth and every scale must be positive, every mean finite")
        normal = np.random.default_rng(seed).standard_normal((features // 2, width)).T
        self._frequencies = np.ascontiguousarray(normal / self.bandwidth, dtype=np.float32)
        self.id = f"array/{kernel}"
        self.fingerprint = self._hash()

    @classmethod
    def fit(
        cls,
        episodes: Iterable[Episode],
        *,
        features: int = 256,
        bandwidth: float | None = None,
        seed: int = 0,
        kernel: str | None = None,
        sample: int = 1000,
    ) -> ArrayEncoder:
        """Mean and scale of every coordinate, and as bandwidth the median distance of distinct vectors.

        kernel=None chooses "cosine" when all vectors have unit length (to 1e-3), and "rbf" otherwise. A
        coordinate that never changes keeps scale 1; `sample` vectors decide the median. Raises `EpisodeError`
        naming episode, step and both widths where observations are not vectors of one width.
        """
        episodes = list(episodes)
        if not episodes:
            raise EpisodeError("an ArrayEncoder is fitted on at least one episode")
        first = episodes[0].steps[0].observation
        width = 0 if isinstance(first, str) else len(first)
        x = np.concatenate([_matrix(ep.steps, width, f"episode {ep.episode_id!r}, ") for ep in episodes])
        if kernel is None:
            unit = width > 1 and np.allclose(np.linalg.norm(x, axis=1), 1.0, rtol=0.0, atol=1e-3)
            kernel = "cosine" if unit else "rbf"
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale <= 1e-9 * (1.0 + np.abs(mean))] = 1.0
        if bandwidth is None and kernel == "rbf":
            bandwidth = _median_distance(np.unique((x - mean) / scale, axis=0), sample, seed)
        return cls(
            width, features=features, bandwidth=bandwidth, mean=mean, scale=scale, seed=seed, kernel=kernel
        )

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.features if self.kernel == "rbf" else self.width

    def encode_steps(self, steps: Sequence[Step], evidence: str = "step") -> np.ndarray:
        """(n, dim) float32 unit rows. Raises `EpisodeError` naming the step and both widths."""
        check_evidence(evidence)
        if evidence == "action":
            return _stack([_identity(step.action or "", self.dim) for step in steps], self.dim)
        x = _matrix(steps, self.width)
        return _unit(x) if self.kernel == "cosine" else self._fourier(x)

    def encode_goals(self, goals: Sequence[str | None]) -> np.ndarray:
        """(n, dim) float32: the same random unit row for the same text, a zero row for None."""
        zero = np.zeros(self.dim, np.float32)
        return _stack([zero if goal is None else _identity(goal, self.dim) for goal in goals], self.dim)

    def to_config(self) -> dict[str, Any]:
        """Every parameter; numbers survive JSON exactly."""
        return {**self._parameters(), "kind": "array", "id": self.id, "fingerprint": self.fingerprint}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ArrayEncoder:
        """See `encoder_from_config`."""
        names = ("width", "features", "bandwidth", "mean", "scale", "seed", "kernel")
        encoder = cls(**{name: config[name] for name in names})
        if encoder.fingerprint != config["fingerprint"]:
            raise ValueError(
                f"encoder {encoder.id}: its parameters give fingerprint {encoder.fingerprint}, not "
                f"{config['fingerprint']}: the config was changed, or numpy draws other random numbers now"
            )
        return encoder

    def __repr__(self) -> str:
        return f"ArrayEncoder({self.width}, kernel={self.kernel!r}, dim={self.dim})"

    def _parameters(self) -> dict[str, Any]:
        numbers = {
            "width": self.width,
            "features": self.features,
            "bandwidth": self.bandwidth,
            "seed": self.seed,
        }
        return {**numbers, "kernel": self.kernel, "mean": self.mean.tolist(), "scale": self.scale.tolist()}

    def _hash(self) -> str:
        text = json.dumps(self._parameters(), sort_keys=True).encode()
        return hashlib.sha256(text + self._frequencies.astype("<f4").tobytes()).hexdigest()

    def _fourier(self, x: np.ndarray) -> np.ndarray:
        half = self.features // 2
        # Beyond a hundred standard deviations everything is equally far away, and stays finite.
        standard = np.clip((x - self.mean) / self.scale, -100.0, 100.0).astype(np.float32)
        rows = np.empty((len(x), self.features), np.float32)
        block = 512  # a block of phases fits the cache
        for start in range(0, len(x), block):
            part = standard[start : start + block]
            # Not a matrix product: the last bits of one depend on how many rows it has.
            phase = np.zeros((len(part), half), np.float32)
            for column, frequency in zip(part.T, self._frequencies, strict=True):
                phase += column[:, None] * frequency
            np.cos(phase, out=rows[start : start + block, :half])
            np.sin(phase, out=rows[start : start + block, half:])
        rows *= np.float32(np.sqrt(2.0 / self.features))
        return rows


def _matrix(steps: Sequence[Step], width: int, where: str = "") -> np.ndarray:
    """Observations as (n, width) float64."""
    for i, step in enumerate(steps):
        if isinstance(step.observation, str):
            raise EpisodeError(f"{where}step {i}: the observation is text, which an ArrayEncoder cannot read")
        if len(step.observation) != width:
            raise EpisodeError(
                f"{where}step {i}: the observation has width {len(step.observation)}, expected {width}"
            )
    return np.array([step.observation for step in steps], np.float64).reshape(len(steps), width)


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows at unit length; first brought to a largest entry of 1, so that no square overflows or vanishes."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1.0)
    length = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    return (x / np.where(length > 0, length, 1.0)).astype(np.float32)


def _median_distance(x: np.ndarray, sample: int, seed: int) -> float:
    """Median pairwise distance of up to `sample` of the distinct rows of x; 1 where there is one row."""
    if len(x) < 2:
        return 1.0
    x = x[np.random.default_rng(seed).permutation(len(x))[:sample]]
    square = np.square(x).sum(axis=1)
    distances = square[:, None] + square - 2.0 * (x @ x.T)
    return float(np.sqrt(np.median(distances[np.triu_indices(len(x), 1)])))


@lru_cache(maxsize=4096)
def _identity(text: str, dim: int) -> np.ndarray:
    """A unit vector drawn at random, always the same one for the same text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return _unit(np.random.default_rng(int.from_bytes(digest)).standard_normal((1, dim)))[0]


def _stack(rows: Sequence[np.ndarray], dim: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, dim), np.float32)
