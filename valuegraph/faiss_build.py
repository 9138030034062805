"""FAISS indexes by tier: what each is made of, how it is trained and tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from valuegraph.vectors import perturbed

__all__ = [
    "TIERS",
    "TRAIN_FROM",
    "build",
    "empty",
    "flat_rows",
    "list_search",
    "load_faiss",
    "product_search",
]

TIERS: Final = {
    "flat": "exact, single precision",
    "flat_fp16": "exact up to rounding to half precision: half the memory",
    "ivf_fp16": "inverted file, half precision: only the lists nearest to a query are read",
    "ivf_sq8": "inverted file, one byte a component",
    "ivf_pq": "inverted file, one byte for every four components",
}
# Vectors below which a tier is kept flat, in half precision.
TRAIN_FROM: Final = {"ivf_fp16": 2_000, "ivf_sq8": 2_000, "ivf_pq": 10_000}

_TUNED_RECALL = 0.98  # of 16 neighbours, on a sample, when the number of lists to visit is chosen
_MIN_PROBES = 4  # for queries that lie between clusters
_FEW = 8  # neighbours that are found one after another
_BLOCK = 4_096  # rows per matrix product: the scores of a batch stay in the cache


def load_faiss() -> Any:
    """The library, imported when the first index is made."""
    import faiss

    return faiss


def empty(dim: int, tier: str) -> Any:
    """A FAISS index without vectors, "flat" or else in half precision."""
    faiss = load_faiss()
    if tier == "flat":
        return faiss.IndexFlatIP(dim)
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def build(vectors: NDArray[np.float32], tier: str, seed: int) -> Any:
    """A FAISS index of a tier that holds the vectors under labels 0 .. n-1."""
    faiss = load_faiss()
    n, dim = vectors.shape
    if n < TRAIN_FROM.get(tier, n + 1):
        host = empty(dim, "flat_fp16" if tier in TRAIN_FROM else tier)
        host.add(vectors)
        return host
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


def flat_rows(flat: Any) -> NDArray[np.float32]:
    """(n, dim) the vectors of a single-precision flat index where they lie: valid until it changes."""
    return load_faiss().rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d)


def product_search(
    rows: Callable[[int, int], NDArray[np.float32]], total: int, queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, k) largest inner products with `total` rows and their numbers, -1 where there are fewer than k."""
    if k <= total <= _BLOCK:
        return _partial_sort(queries @ rows(0, total).T, k)
    return _largest(lambda start, stop: queries @ rows(start, stop).T, total, len(queries), k)


def _largest(
    scores_of: Callable[[int, int], NDArray[np.float32]], total: int, queries: int, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(queries, k) the largest of `total` scores, which are asked for by blocks, and their numbers."""
    faiss = load_faiss()
    similarity, numbers = np.empty((queries, k), np.float32), np.empty((queries, k), np.int64)
    best = faiss.float_minheap_array_t()
    best.nh, best.k = similarity.shape
    best.val, best.ids = faiss.swig_ptr(similarity), faiss.swig_ptr(numbers)
    best.heapify()
    for start in range(0, total, _BLOCK):
        scores = np.ascontiguousarray(scores_of(start, min(start + _BLOCK, total)))
        best.addn(scores.shape[1], faiss.swig_ptr(scores), start)
    best.reorder()
    return similarity, numbers


def list_search(
    host: Any, queries: NDArray[np.float32], nearest: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, k) similarities and labels in the given lists (n, probes) of a half-precision IVF.

    List by list instead of query by query: each is decoded once and multiplied with all queries that visit
    it, several times faster than FAISS's scan once a list has many visitors.
    """
    faiss, lists = load_faiss(), host.invlists
    sizes = np.array([lists.list_size(i) for i in range(host.nlist)], np.int64)
    ends = np.cumsum(np.where(nearest >= 0, sizes[nearest], 0), axis=1)
    room = max(int(ends[:, -1].max(initial=0)), k)
    scores = np.full((len(queries), room), -np.inf, np.float32)
    labels = np.full((len(queries), room + 1), -1)  # the last place stays free for number -1, "none"
    order = np.argsort(nearest, axis=None, kind="stable")
    visited, first = np.unique(nearest.ravel()[order], return_index=True)
    for which, visits in zip(visited.tolist(), np.split(order, first[1:]), strict=True):
        if which < 0 or not sizes[which]:
            continue
        size = int(sizes[which])
        codes = faiss.rev_swig_ptr(lists.get_codes(which), size * host.code_size).view(np.float16)
        rows, probes = np.divmod(visits, nearest.shape[1])
        product = queries[rows] @ codes.reshape(size, -1).astype(np.float32).T
        own = faiss.rev_swig_ptr(lists.get_ids(which), size)
        for row, stop, found in zip(rows.tolist(), ends[rows, probes].tolist(), product, strict=True):
            scores[row, stop - size : stop], labels[row, stop - size : stop] = found, own
    similarity, places = _largest(lambda start, stop: scores[:, start:stop], room, len(queries), k)
    return similarity, np.take_along_axis(labels, places, axis=1)


def _partial_sort(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k largest of each row, descending, which may be written over; no threads, whose waking costs more
    than so few rows do."""
    if k <= _FEW:  # the largest, then the next: the fastest way to a handful
        rows, top = np.arange(len(scores)), np.empty((len(scores), k), np.int64)
        found = np.empty((len(scores), k), np.float32)
        for i in range(k):
            top[:, i] = scores.argmax(axis=1)
            found[:, i] = scores[rows, top[:, i]]
            scores[rows, top[:, i]] = -np.inf
        return found, top
    top = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    found = np.take_along_axis(scores, top, axis=1)
    order = np.lexsort((top, -found), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(top, order, axis=1)


def _tune(host: Any, queries: NDArray[np.float32], k: int = 16) -> None:
    """Visit as few lists as keep the recall, measured against visiting all of them."""
    host.nprobe = host.nlist
    threshold = host.search(queries, k)[0][:, -1:] - 1e-6
    probes = _MIN_PROBES
    while probes < host.nlist:
        host.nprobe = probes
        if (host.search(queries, k)[0] >= threshold).mean() >= _TUNED_RECALL:
            return
        probes *= 2
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
