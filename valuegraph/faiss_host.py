"""An index in FAISS on the host, and the fastest way to ask it on the processor."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from valuegraph.faiss_search import (
    Found,
    flat_rows,
    half_rows,
    list_search,
    load_faiss,
    product_search,
    scan,
    widened,
)
from valuegraph.threads import one_thread, several_threads

__all__ = ["HostSearch"]

# From so many queries on, matrix products by blocks beat FAISS's own scan, which is made for single queries.
_VISITORS = 12  # queries per list from which lists are multiplied as a whole
_PRODUCT_FROM: Final = {"flat": 3, "flat_fp16": 16, "ivf": 8}


class HostSearch:
    """Searches in one FAISS index, flat or IVF, by labels; what it holds may change between them.

    Queries are (n, width) and contiguous, see `widened`; the caller keeps writers away.
    """

    def __init__(self, index: Any, *, half_lists: bool) -> None:
        """half_lists: whether an IVF keeps half precision, so that its lists can be multiplied as a whole."""
        self.index = index
        self.flat = not hasattr(index, "nprobe")
        self.half = not hasattr(index, "get_xb")
        """Whether vectors are rounded."""
        self._kept_as = "ivf" if not self.flat else "flat_fp16" if self.half else "flat"
        self._half_lists = half_lists and not self.flat
        self._centroids: Any = None if self.flat else flat_rows(load_faiss().downcast_index(index.quantizer))

    def nearest(self, queries: NDArray[np.float32], k: int) -> Found:
        """The k nearest."""
        if len(queries) < _PRODUCT_FROM[self._kept_as]:
            return self.index.search(queries, k)
        if self.flat:
            return product_search(self.rows, self.index.ntotal, queries, k)
        return self._visit(queries, *self._lists(queries), k)

    def beside(self, queries: NDArray[np.float32], hints: NDArray[np.float32], k: int) -> Found:
        """The k nearest in the lists nearest to the queries and to what else is known of them."""
        return self._visit(queries, *_distinct(self._lists(queries), self._lists(hints)), k)

    def both(self, base: NDArray[np.float32], more: NDArray[np.float32], k: int) -> list[Found] | None:
        """The k nearest to the queries, and to queries + more, in lists that are read once for both; None
        where that does not pay. For an IVF whose lists may be read as a whole, see `by_lists`."""
        nearest = self._lists(base)[1]
        return list_search(self.index, [base, more], nearest, k) if self._crowded(nearest, 2) else None

    def everywhere(self, queries: NDArray[np.float32], k: int) -> Found:
        """The k nearest of all, whatever lists they are in."""
        effort = None if self.flat else load_faiss().SearchParametersIVF(nprobe=self.index.nlist)
        return self.index.search(queries, k, params=effort)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a flat index; single precision in place, half precision decoded."""
        if self.half:
            return half_rows(self.index, start, stop)
        return flat_rows(self.index)[start:stop]

    def vectors(self, labels: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
        """(n, dim) vectors by label, as precisely as they are kept."""
        if not len(labels):
            return np.empty((0, dim), np.float32)
        return np.ascontiguousarray(self.index.reconstruct_batch(labels)[:, :dim])

    def widened(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows, as wide as those of the index."""
        return widened(rows, self.index.d)

    def by_lists(self, queries: int) -> bool:
        """Whether so many queries may read lists as a whole."""
        return self._half_lists and queries >= _PRODUCT_FROM["ivf"]

    def alone(self, queries: int) -> AbstractContextManager[None]:
        """One thread for so many queries: in lists, pools of numpy, torch and FAISS wait for each other."""
        return one_thread(self.by_lists(queries) and several_threads())

    def _visit(
        self, queries: NDArray[np.float32], similarity: NDArray[np.float32], lists: NDArray[np.int64], k: int
    ) -> Found:
        """The k nearest in (n, visits) lists, each of the similarity given."""
        if self.by_lists(len(queries)) and self._crowded(lists):
            return list_search(self.index, [queries], lists, k)[0]
        return scan(self.index, queries, similarity, lists, k)

    def _lists(self, queries: NDArray[np.float32]) -> Found:
        """Similarities and numbers of the lists to visit."""
        index = self.index
        return product_search(lambda i, j: self._centroids[i:j], index.nlist, queries, index.nprobe)

    def _crowded(self, nearest: NDArray[np.int64], times: int = 1) -> bool:
        """Whether the lists that are visited have visitors enough, each of whom asks so many times."""
        return times * nearest.size > _VISITORS * len(np.unique(nearest))


def _distinct(first: Found, second: Found) -> Found:
    """Lists side by side, and -1 instead of one that is named already."""
    similarity = np.concatenate([first[0], second[0]], axis=1)
    again = (second[1][:, :, None] == first[1][:, None, :]).any(axis=2)
    return similarity, np.concatenate([first[1], np.where(again, -1, second[1])], axis=1)
