"""A vector index on FAISS: exact while that is cheap, inverted files beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.faiss_cagra import GraphCopy
from valuegraph.faiss_gpu import MAX_NEIGHBOURS, Host
from valuegraph.faiss_search import Found
from valuegraph.faiss_store import FaissStore
from valuegraph.vectors import SearchResult, check_k, check_queries, split_result

if TYPE_CHECKING:
    import torch

__all__ = ["FaissIndex"]


class FaissIndex(FaissStore):
    """Vectors in a FAISS index on the host, with an optional copy on a GPU that is read instead."""

    def search(self, queries: ArrayLike, k: int, beside: ArrayLike | None = None) -> SearchResult:
        """See `VectorIndex.search`.

        beside: (n, dim) what else is known of each query; the inverted lists nearest to it are visited too.
        """
        wanted, k = check_queries(queries, self.dim), check_k(k)
        hint = None if beside is None else check_queries(beside, self.dim, "beside")
        with self._lock.read, self._on_host.alone(0 if self._gpu else len(wanted)):
            wanted, ask = self._on_host.widened(wanted), k + len(self._labels.tombstones)
            if hint is not None and not self._flat and self._gpu is None:
                found = self._on_host.beside(wanted, self._on_host.widened(hint), ask)
            elif self._gpu is not None and self._host.ntotal and ask <= MAX_NEIGHBOURS:
                found = self._gpu.search(self._for_gpu(), wanted, ask)
            else:
                found = self._on_host.nearest(wanted, ask)
            result = self._present(wanted, found, k)
        if self._gpu is not None:
            self._keep_up()
        return result

    def search_both(self, queries: ArrayLike, more: ArrayLike, k: int) -> tuple[SearchResult, SearchResult]:
        """`search` of queries + more, and of the queries: (n, dim) each.

        `more` is to be small beside the queries: where inverted lists are read as a whole, those nearest to
        the queries serve both, and are read once.
        """
        base, extra, k = check_queries(queries, self.dim), check_queries(more, self.dim, "more"), check_k(k)
        n = len(base)
        with self._lock.read, self._on_host.alone(0 if self._gpu else n):
            if self._gpu is None and self._on_host.by_lists(n):
                first, more_of_it = self._on_host.widened(base), self._on_host.widened(extra)
                found = self._on_host.both(first, more_of_it, k + len(self._labels.tombstones))
                if found is not None:
                    alone, whole = found
                    return self._present(first + more_of_it, whole, k), self._present(first, alone, k)
        return split_result(self.search(np.concatenate([base + extra, base]), k), n)

    def _present(self, queries: NDArray[np.float32], found: Found, k: int) -> SearchResult:
        """What was found, without tombstones; (n, host's width) queries that found too little look anew."""
        similarity, labels = found
        ids = self._labels.ids.take(labels)
        if not ids.size or ids.min() >= 0:
            return SearchResult(similarity[:, :k], ids[:, :k])
        if not self._flat or isinstance(self._gpu, GraphCopy):
            short = (ids >= 0).sum(axis=1) < min(k, len(self._labels))
            if short.any():  # the lists visited, or the graph, hold too few
                similarity[short], labels[short] = self._on_host.everywhere(queries[short], labels.shape[1])
                ids = self._labels.ids.take(labels)
        absent = ids < 0
        similarity[absent] = -np.inf
        order = np.argsort(absent, axis=1, kind="stable")[:, :k]  # those present first, in order
        return SearchResult(np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1))

    def search_tensor(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`search` for CUDA tensors, without a detour through the host: (n, k) similarity and ids.

        Work is queued on the current stream of the queries' device. Queries are not checked for NaN. What a
        graph finds too little of is not looked for anew: id -1, similarity -inf.
        """
        import torch

        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must have shape (n, {self.dim}), got {tuple(queries.shape)}")
        ask = check_k(k) + len(self._labels.tombstones)
        if self._gpu is None or not queries.is_cuda or ask > MAX_NEIGHBOURS or not len(self):
            result = self.search(queries.detach().float().cpu().numpy(), k)
            similarity, ids = map(torch.from_numpy, result)
            return similarity.to(queries.device), ids.to(queries.device)
        with self._lock.read:
            host, ask = self._for_gpu(), k + len(self._labels.tombstones)
            padded = torch.nn.functional.pad(queries, (0, self._host.d - self.dim))
            similarity, labels = self._gpu.search_tensor(host, padded, ask)
            ids = self._gpu.ids_tensor(host, queries.device)[labels]
        self._keep_up()
        similarity, order = similarity.masked_fill(ids < 0, -torch.inf).topk(k, dim=1)
        return similarity, ids.gather(1, order)

    def _for_gpu(self) -> Host:
        labels, half = self._labels, self._on_host.half
        return Host(
            self._host, self._epoch, labels.next, labels.ids, self._on_host.rows, flat=self._flat, half=half
        )
