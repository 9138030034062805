"""FAISS indexes by tier: what each is made of, how it is trained and tuned."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.faiss_search import load_faiss, wide, widened
from valuegraph.tiers import TRAIN_FROM
from valuegraph.vectors import perturbed

__all__ = ["build", "empty"]

_TUNED_RECALL = 0.98  # of 16 neighbours, on a sample, when the number of lists to visit is chosen
_MIN_PROBES = 2  # for queries that lie between clusters
_BLOCK = 4_096  # rows per matrix product


def empty(dim: int, tier: str) -> Any:
    """A FAISS index without vectors, "flat" or else in half precision."""
    faiss = load_faiss()
    if tier == "flat":
        return faiss.IndexFlatIP(dim)
    return faiss.IndexScalarQuantizer(wide(dim), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def build(vectors: NDArray[np.float32], tier: str, seed: int) -> Any:
    """A FAISS index of a tier that holds the vectors under labels 0 .. n-1."""
    faiss = load_faiss()
    n, dim = vectors.shape
    if n < TRAIN_FROM.get(tier, n + 1):
        host = empty(dim, "flat_fp16" if tier in TRAIN_FROM else tier)
        host.add(widened(vectors, host.d))
        return host
    dim = wide(dim)
    vectors = widened(vectors, dim)
    lists = int(2 * np.sqrt(n))
    centroids = faiss.IndexFlatIP(dim)
    centroids.add(_spherical_kmeans(vectors, lists, seed))
    if tier == "ivf_pq":
        parts = max(m for m in range(1, max(1, dim // 4) + 1) if dim % m == 0)
        host = faiss.IndexIVFPQ(centroids, dim, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
    else:
        kind = faiss.ScalarQuantizer.QT_fp16 if tier == "ivf_fp16" else faiss.ScalarQuantizer.QT_8bit
        host = faiss.IndexIVFScalarQuantizer(centroids, dim, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    rng = np.random.default_rng(seed)
    host.train(vectors[np.sort(rng.choice(n, min(n, 100_000), replace=False))])
    host.set_direct_map_type(faiss.DirectMap.Hashtable)
    host.add_with_ids(vectors, np.arange(n))
    sample = vectors[np.sort(rng.choice(n, min(n, 128), replace=False))]
    _tune(host, perturbed(sample, rng))
    return host


def _tune(host: Any, queries: NDArray[np.float32], k: int = 16) -> None:
    """Visit as few lists as keep the recall, measured against visiting all of them."""
    host.nprobe = host.nlist
    threshold = host.search(queries, k)[0][:, -1:] - 1e-6
    probes = _MIN_PROBES
    while probes < host.nlist:
        host.nprobe = probes
        if (host.search(queries, k)[0] >= threshold).mean() >= _TUNED_RECALL:
            return
        probes += probes // 2
    host.nprobe = host.nlist


def _spherical_kmeans(
    vectors: NDArray[np.float32], clusters: int, seed: int, iterations: int = 8
) -> NDArray[np.float32]:
    """(clusters, dim) unit centroids (Dhillon & Modha 2001), by matrix products; the same for the same seed.

    FAISS's own k-means assigns by its scan for single queries, several times slower.
    """
    rng = np.random.default_rng(seed)
    points = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), 64 * clusters), replace=False))]
    centroids = points[rng.choice(len(points), clusters, replace=False)]
    for _ in range(iterations):
        blocks = (points[start : start + _BLOCK] for start in range(0, len(points), _BLOCK))
        nearest = np.concatenate([np.argmax(block @ centroids.T, axis=1) for block in blocks])
        order = np.argsort(nearest, kind="stable")
        present, first = np.unique(nearest[order], return_index=True)
        centroids = points[rng.choice(len(points), clusters, replace=False)]  # for those left empty
        centroids[present] = np.add.reduceat(points[order], first, axis=0)
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(centroids)
