"""Weaker cures for over-optimisation, to use beside a reward: stay near the start policy.

`blend_checkpoints` goes part of the way back in weights; `EmbeddingKL` measures how far the samples of a
policy have moved, where its likelihoods cannot be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["EmbeddingKL", "blend_checkpoints"]

Array = NDArray[np.float64]

_TINY = 1e-12
_RIDGE = 1e-6  # of the mean variance: directions in which a sample never varies stay finite


def blend_checkpoints(
    start: nn.Module | Mapping[str, Tensor], trained: nn.Module | Mapping[str, Tensor], weight: float
) -> dict[str, Tensor]:
    """State dict (1 - weight) * start + weight * trained, weight in [0, 1].

    Tensors that are not floating point (counters, indices) are taken from `trained`. Raises ValueError for
    a weight outside [0, 1] and for checkpoints whose names, shapes or types differ, naming the tensor.
    Wortsman et al. 2022 (WiSE-FT), https://arxiv.org/abs/2109.01903; Ramé et al. 2024 (WARP),
    https://arxiv.org/abs/2406.16768
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must be in [0, 1], not {weight}")
    before, after = _state(start), _state(trained)
    if before.keys() != after.keys():
        raise ValueError(f"only one checkpoint has {sorted(before.keys() ^ after.keys())}")
    blended = {}
    for name, a in before.items():
        b = after[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{name}: {tuple(a.shape)} {a.dtype} against {tuple(b.shape)} {b.dtype}")
        if a.is_floating_point():
            blended[name] = a.detach().lerp(b.detach().to(a.device), weight)
        else:
            blended[name] = b.detach().clone()
    return blended


def _state(checkpoint: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return checkpoint if isinstance(checkpoint, Mapping) else checkpoint.state_dict()


class EmbeddingKL:
    """KL(samples || reference), in nats, between the embeddings of two sets of samples.

    "gaussian": closed form between Gaussians fitted with the shrinkage of Ledoit & Wolf 2004. "knn":
    d * mean log(nu_k / rho_k) + log(m / (n - 1)), rho_k and nu_k the distances of a sample to its k-th
    nearest other sample and reference (Wang, Kulkarni & Verdú 2009, eq. 5); nothing is assumed, but many
    samples are needed. `components` > 0 keeps that many principal directions of the reference, for
    embeddings with more dimensions than there are samples: a lower bound on the KL of the whole.
    """

    def __init__(
        self,
        reference: ArrayLike,
        *,
        estimator: Literal["gaussian", "knn"] = "gaussian",
        k: int = 5,
        components: int = 0,
    ) -> None:
        if estimator not in ("gaussian", "knn"):
            raise ValueError(f"estimator must be 'gaussian' or 'knn', not {estimator!r}")
        self.estimator, self.k = estimator, k
        points = _points(reference, k if estimator == "knn" else 1)
        self._centre = points.mean(axis=0)
        self._axes = np.eye(points.shape[1])
        if components:
            self._axes = np.linalg.svd(points - self._centre, full_matrices=False)[2][:components].T
        self._reference = (points - self._centre) @ self._axes
        self._gaussian = _gaussian(self._reference)

    def __call__(self, samples: ArrayLike) -> float:
        """The estimate; noise may bring that of "knn" below zero."""
        points = self._project(samples)
        if self.estimator == "knn":
            return float(self._nearest(points).mean())
        (mean, covariance), (origin, spread) = _gaussian(points), self._gaussian
        inverse, shift = np.linalg.inv(spread), mean - origin
        logs = np.linalg.slogdet(spread)[1] - np.linalg.slogdet(covariance)[1]
        trace = float(np.trace(inverse @ covariance))
        return 0.5 * float(trace + shift @ inverse @ shift - len(mean) + logs)

    def penalty(self, samples: ArrayLike) -> Array:
        """(n,) estimated log ratio of the densities at each sample of a batch: subtract beta times it from
        the rewards. Its mean is the KL, up to the shrinkage of "gaussian"."""
        points = self._project(samples)
        if self.estimator == "knn":
            return self._nearest(points)
        return _log_density(points, *_gaussian(points)) - _log_density(points, *self._gaussian)

    def _project(self, samples: ArrayLike) -> Array:
        points = _points(samples, self.k if self.estimator == "knn" else 1)
        if points.shape[1] != len(self._axes):
            raise ValueError(f"samples have {points.shape[1]} dimensions, the reference {len(self._axes)}")
        return np.asarray((points - self._centre) @ self._axes)

    def _nearest(self, points: Array) -> Array:
        own, other = _distances(points, points), _distances(points, self._reference)
        np.fill_diagonal(own, np.inf)
        rho = np.partition(own, self.k - 1, axis=1)[:, self.k - 1]
        nu = np.partition(other, self.k - 1, axis=1)[:, self.k - 1]
        ratio = np.log(np.maximum(nu, _TINY)) - np.log(np.maximum(rho, _TINY))
        return points.shape[1] * ratio + np.log(len(other[0]) / (len(points) - 1))


def _points(values: ArrayLike, least: int) -> Array:
    points = np.asarray(values, np.float64)
    if points.ndim != 2 or len(points) <= least or not np.isfinite(points).all():
        raise ValueError(f"need finite embeddings (n, d) with n > {least}, got {points.shape}")
    return points


def _gaussian(points: Array) -> tuple[Array, Array]:
    """Mean and covariance, shrunk towards a multiple of the identity by as much as Ledoit & Wolf say."""
    n, d = points.shape
    mean = points.mean(axis=0)
    centred = points - mean
    covariance = centred.T @ centred / n
    scale = max(float(np.trace(covariance)) / d, _TINY)
    target = scale * np.eye(d)
    spread = float(np.square(covariance - target).sum())
    norms = np.square(centred).sum(axis=1)
    noise = float(np.square(norms).sum() / n - np.square(covariance).sum()) / n
    shrinkage = min(max(noise / max(spread, _TINY), 0.0), 1.0)
    return mean, (1.0 - shrinkage) * covariance + (shrinkage + _RIDGE) * target


def _log_density(points: Array, mean: Array, covariance: Array) -> Array:
    centred = points - mean
    squared = np.sum(centred @ np.linalg.inv(covariance) * centred, axis=1)
    return -0.5 * (squared + np.linalg.slogdet(covariance)[1] + len(mean) * np.log(2.0 * np.pi))


def _distances(a: Array, b: Array) -> Array:
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0))
