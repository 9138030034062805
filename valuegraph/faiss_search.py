"""Searches in FAISS's own memory by matrix products; its scan is made for single queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Found",
    "flat_rows",
    "half_codes",
    "half_rows",
    "list_search",
    "load_faiss",
    "product_search",
    "scan",
    "single",
    "wide",
    "widened",
]

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(n, k) similarities, descending, and labels, -1 where there are fewer."""

_LANES = 16  # numbers that a processor multiplies at once
_FEW = 8  # neighbours that are found one after another
_BLOCK = 4_096  # rows per matrix product: the scores of a batch stay in the cache


def load_faiss() -> Any:
    """The library, imported when the first index is made."""
    import faiss

    return faiss


def wide(dim: int) -> int:
    """The width that rows of a quantised index are given: FAISS scans some ten times slower where it is no
    multiple of 16."""
    return -(-dim // _LANES) * _LANES


def widened(rows: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """(n, width) the rows, with zeros behind."""
    if rows.shape[1] == width:
        return rows
    out = np.zeros((len(rows), width), np.float32)
    out[:, : rows.shape[1]] = rows
    return out


def flat_rows(flat: Any) -> NDArray[np.float32]:
    """(n, dim) the vectors of a single-precision flat index where they lie: valid until it changes."""
    return load_faiss().rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d)


def half_codes(flat: Any) -> NDArray[np.float16]:
    """(n, dim) the vectors of a half-precision flat index where they lie: valid until it changes."""
    codes = load_faiss().rev_swig_ptr(flat.codes.data(), flat.ntotal * flat.code_size)
    return codes.view(np.float16).reshape(flat.ntotal, -1)


def half_rows(flat: Any, start: int, stop: int) -> NDArray[np.float32]:
    """(stop - start, dim) some vectors of a half-precision flat index, decoded."""
    return single(half_codes(flat)[start:stop])


def product_search(
    rows: Callable[[int, int], NDArray[np.float32]], total: int, queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, k) largest inner products with `total` rows and their numbers, -1 where there are fewer than k."""
    part = _asked(queries)
    queries = queries[:, part]
    if k <= total <= _BLOCK:
        return _partial_sort(queries @ rows(0, total)[:, part].T, k)
    best = _Best(len(queries), k)
    for start in range(0, total, _BLOCK):
        best.offer(queries @ rows(start, min(start + _BLOCK, total))[:, part].T, start)
    return best.found()


def list_search(
    host: Any, parts: Sequence[NDArray[np.float32]], nearest: NDArray[np.int64], k: int
) -> list[Found]:
    """Similarities and labels in the given lists (n, probes) of a half-precision IVF, for queries in parts,
    (n, width) each: first for parts[0], then for parts[0] + parts[1], and so on.

    List by list instead of query by query: each is decoded once and multiplied with all queries that visit
    it, several times faster than FAISS's scan once a list has many visitors.
    """
    faiss, lists = load_faiss(), host.invlists
    columns = [_asked(part) for part in parts]
    asked = [np.ascontiguousarray(part[:, some]) for part, some in zip(parts, columns, strict=True)]
    best = [_Best(len(nearest), k) for _ in parts]
    read = slice(min(some.start for some in columns), max(some.stop for some in columns))
    columns = [slice(some.start - read.start, some.stop - read.start) for some in columns]
    for which, rows in _visits(nearest):
        size = int(lists.list_size(which))
        if size:
            codes = faiss.rev_swig_ptr(lists.get_codes(which), size * host.code_size)
            decoded, labels = single(codes.view(np.float16).reshape(size, -1)[:, read]), lists.get_ids(which)
            scores: Any = 0.0
            for part, some, kept in zip(asked, columns, best, strict=True):
                scores = scores + part[rows] @ decoded[:, some].T
                kept.offer_to(rows, scores, labels)
    return [kept.found() for kept in best]


def scan(
    host: Any,
    queries: NDArray[np.float32],
    similarity: NDArray[np.float32],
    lists: NDArray[np.int64],
    k: int,
) -> Found:
    """The same of one part, by FAISS, query by query; -1 is no list."""
    faiss, (n, visits) = load_faiss(), lists.shape
    found = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    asked, coarse, which = map(np.ascontiguousarray, (queries, similarity, lists))
    given, taken = map(faiss.swig_ptr, (which, coarse)), map(faiss.swig_ptr, found)
    effort = faiss.SearchParametersIVF(nprobe=visits)
    host.search_preassigned_c(n, faiss.swig_ptr(asked), k, *given, *taken, False, effort)
    return found


def _visits(nearest: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each list that is visited, and who visits it."""
    order = np.argsort(nearest, axis=None, kind="stable")
    visited, first = np.unique(nearest.ravel()[order], return_index=True)
    visitors = np.split(order // nearest.shape[1], first[1:])
    return ((which, rows) for which, rows in zip(visited.tolist(), visitors, strict=True) if which >= 0)


def _asked(queries: NDArray[np.float32]) -> slice:
    """The columns outside of which all queries are zero."""
    columns = np.flatnonzero(queries.any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)


def single(half: NDArray[np.float16]) -> NDArray[np.float32]:
    """In single precision. torch asks the processor to convert, some twenty times faster than numpy."""
    import torch

    return torch.from_numpy(half).float().numpy()


class _Best:
    """The k largest scores of each query so far, and the labels they have; -1 where there are fewer."""

    def __init__(self, queries: int, k: int) -> None:
        self._faiss = load_faiss()
        self._scores, self._labels = np.empty((queries, k), np.float32), np.empty((queries, k), np.int64)
        self._heap = self._faiss.float_minheap_array_t()
        self._heap.nh, self._heap.k = queries, k
        self._heap.val, self._heap.ids = map(self._faiss.swig_ptr, (self._scores, self._labels))
        self._heap.heapify()

    def offer(self, scores: NDArray[np.float32], start: int) -> None:
        """(queries, m) scores of the labels from `start` on."""
        scores = np.ascontiguousarray(scores)
        self._heap.addn(scores.shape[1], self._faiss.swig_ptr(scores), start)

    def offer_to(self, queries: NDArray[np.int64], scores: NDArray[np.float32], labels: Any) -> None:
        """(q, m) scores of m labels, which FAISS points to, for some of the queries."""
        queries, scores = np.ascontiguousarray(queries), np.ascontiguousarray(scores)
        swig = self._faiss.swig_ptr
        shape, given = scores.shape, (swig(queries), swig(scores))
        self._heap.addn_query_subset_with_ids(shape[0], given[0], shape[1], given[1], labels)

    def found(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(queries, k) scores, descending, and labels."""
        self._heap.reorder()
        return self._scores, self._labels


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
