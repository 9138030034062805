"""A graph on a GPU beside the vectors that came since it was built: CAGRA, in the cuVS build of FAISS.

Such a graph takes in nothing and gives up nothing, so what is new is scanned beside it, what is gone is left
out of what it finds, and it is built anew once a share of it has changed.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from valuegraph.faiss_gpu import MAX_NEIGHBOURS, GpuCopy, Host, on_the_stream_of
from valuegraph.faiss_search import load_faiss, product_search, single
from valuegraph.vectors import perturbed

if TYPE_CHECKING:
    import torch

__all__ = ["GraphCopy"]

_GRAPH_FROM = 10_000  # vectors below which all of them are scanned
_STALE = 1 / 8  # of a graph's rows: when so many are new or gone, it is built anew
_EFFORTS: Final = (64, 128, 256, 512)  # candidates kept during a search; beyond, a batch is slow
_TUNED_RECALL = 0.98  # of 16 neighbours, on a sample, when one of them is chosen
_USABLE_RECALL = 0.9  # with the most of them; below, a scan is better
_LARGEST_HALF = 65_504.0


class GraphCopy:
    """Vectors of a flat half-precision index on one GPU, read through a graph (Ootomo et al. 2023,
    arXiv 2308.15136) once it is built; what the graph does not hold is scanned. It has what `GpuCopy` has.

    Which neighbours a graph finds may differ from run to run.
    """

    def __init__(self, device: int = 0) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._rest = GpuCopy(device)
        self._graph: _Graph | None = None
        self._patience = 0

    def search(self, host: Host, queries: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
        """(n, k) similarities and labels, -1 where too few were found; k at most `MAX_NEIGHBOURS`."""
        with self._lock:
            graph, found = self._graph_of(host), []
            first = 0 if graph is None else graph.first
            if graph is not None:
                found.append(graph.search(queries, k))
            if host.labels > first or graph is None:
                similarity, labels = self._rest.search(_since(host, first), queries, k)
                found.append((similarity, np.where(labels < 0, -1, labels + first)))
        similarity, labels = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
        similarity = np.where(labels < 0, -np.inf, similarity).astype(np.float32)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarity, order, 1), np.take_along_axis(labels, order, 1)

    def search_tensor(self, host: Host, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as tensors of the queries' device, on its current stream."""
        import torch

        with self._lock:
            graph, found = self._graph_of(host), []
            first = 0 if graph is None else graph.first
            if graph is not None:
                found.append(graph.search_tensor(queries, k))
            if host.labels > first or graph is None:
                similarity, labels = self._rest.search_tensor(_since(host, first), queries, k)
                found.append((similarity, torch.where(labels < 0, -1, labels + first)))
        similarity, labels = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
        similarity, order = similarity.masked_fill(labels < 0, -torch.inf).topk(k, dim=1)
        return similarity, labels.gather(1, order)

    def ids_tensor(self, host: Host, device: torch.device) -> torch.Tensor:
        """See `GpuCopy.ids_tensor`."""
        return self._rest.ids_tensor(host, device)

    def due(self, epoch: int, labels: int) -> bool:
        """Whether a graph, or a new one, would pay for so many labels."""
        graph = self._graph
        if labels < self._patience:
            return False
        if graph is None or graph.epoch != epoch:
            return labels >= _GRAPH_FROM
        return labels - graph.first + graph.gone > _STALE * graph.size

    def build(
        self, rows: NDArray[np.float16], labels: NDArray[np.int64], epoch: int, next_label: int, seed: int
    ) -> None:
        """Make the graph of (n, width) rows, with labels below `next_label`, and use it from then on; others
        search as before meanwhile. What keeps it from being built is raised, and it is not due for a while.
        """
        try:
            graph = _Graph(self._device, rows, labels, epoch, next_label, seed)
        except Exception:
            self._patience = next_label + next_label // 8
            raise
        with self._lock:
            self._graph = graph
            self._rest.clear()

    def compacted(self, kept: NDArray[np.bool_], epoch: int) -> None:
        """The host took out the labels that are not kept, and those behind have moved up."""
        with self._lock:
            if self._graph is not None:
                self._graph.move(kept, epoch)

    def _graph_of(self, host: Host) -> _Graph | None:
        """The graph, where it is one of the host's vectors."""
        graph = self._graph
        return graph if graph is not None and graph.epoch == host.epoch else None


class _Graph:
    """Rows in a graph, and the labels that they have by now."""

    def __init__(
        self,
        device: int,
        rows: NDArray[np.float16],
        labels: NDArray[np.int64],
        epoch: int,
        next_label: int,
        seed: int,
    ) -> None:
        self._faiss = faiss = load_faiss()
        self._device = device
        self._resources = faiss.StandardGpuResources()  # its own: others search while it is built
        self.size, self.epoch = len(rows), epoch
        self.first = next_label
        """Labels from here on are not in the graph."""
        self.gone = 0
        self._labels = np.append(labels, -1)  # by row; at the end, for a row that there is not
        self._on_device: Any = None
        self._index = self._built(rows)
        self._effort = _EFFORTS[0]
        self._tune(rows, np.random.default_rng(seed))

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
        """(n, k) similarities and labels, -1 where too few were found."""
        asked = np.clip(queries, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
        similarity, rows = self._find(asked, self._ask(k))
        labels = self._labels[np.where((rows < 0) | (rows > self.size), self.size, rows)]
        room = ((0, 0), (0, max(0, k - labels.shape[1])))
        return np.pad(similarity, room), np.pad(labels, room, constant_values=-1)

    def search_tensor(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as tensors."""
        import torch
        from torch.nn.functional import pad

        faiss, n, ask = self._faiss, len(queries), self._ask(k)
        asked = queries.detach().clamp(-_LARGEST_HALF, _LARGEST_HALF).to(torch.float16).contiguous()
        similarity = torch.empty(n, ask, dtype=torch.float32, device=queries.device)
        rows = torch.empty(n, ask, dtype=torch.int64, device=queries.device)
        with on_the_stream_of(asked, self._resources, self._device):
            self._index.search_ex(
                n,
                faiss.cast_integer_to_void_ptr(asked.data_ptr()),
                faiss.Float16,
                ask,
                faiss.cast_integer_to_float_ptr(similarity.data_ptr()),
                faiss.cast_integer_to_idx_t_ptr(rows.data_ptr()),
                self._parameters(ask),
            )
        if self._on_device is None:
            self._on_device = torch.from_numpy(self._labels.copy()).to(queries.device)
        labels = self._on_device[rows.masked_fill((rows < 0) | (rows > self.size), self.size)]
        room = (0, max(0, k - ask))
        return pad(similarity, room), pad(labels, room, value=-1)

    def move(self, kept: NDArray[np.bool_], epoch: int) -> None:
        """See `GraphCopy.compacted`."""
        now = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # label -1 stays -1
        self._labels = now[self._labels]
        self.gone = int((self._labels[:-1] < 0).sum())
        self.first, self.epoch, self._on_device = int(kept[: self.first].sum()), epoch, None

    def _ask(self, k: int) -> int:
        """So many neighbours that k of them should still be there."""
        return min(k + min(self.gone, k + 32), self.size, MAX_NEIGHBOURS)

    def _find(self, queries: NDArray[np.float16], k: int) -> tuple[NDArray, NDArray]:
        """Similarities and rows; a row that there is not where too few were found."""
        return self._index.search(queries, k, params=self._parameters(k), numeric_type=self._faiss.Float16)

    def _parameters(self, k: int) -> Any:
        # Rounded up to whole warps, as the search would.
        return self._faiss.SearchParametersCagra(itopk_size=max(self._effort, -(-k // 32) * 32))

    def _built(self, rows: NDArray[np.float16]) -> Any:
        faiss = self._faiss
        ways = faiss.graph_build_algo_IVF_PQ, faiss.graph_build_algo_NN_DESCENT
        for way in ways:
            config = faiss.GpuIndexCagraConfig()
            config.device, config.build_algo = self._device, way
            index = faiss.GpuIndexCagra(self._resources, rows.shape[1], faiss.METRIC_INNER_PRODUCT, config)
            try:
                index.train(rows, numeric_type=faiss.Float16)
            except RuntimeError:  # the first way is the lighter one, and refuses many rows that are equal
                if way == ways[-1]:
                    raise
            else:
                break
        return index

    def _tune(self, rows: NDArray[np.float16], rng: np.random.Generator, k: int = 16) -> None:
        """Keep as few candidates as keep the recall, measured against a scan on the host. Raises RuntimeError
        for a graph that finds too little, or gives other similarities than there are."""
        sample = single(rows[np.sort(rng.choice(len(rows), min(len(rows), 128), replace=False))])
        asked = perturbed(sample, rng).astype(np.float16)
        queries, k = single(asked), min(k, len(rows))
        best = product_search(lambda i, j: single(rows[i:j]), len(rows), queries, k)[0][:, -1:] - 1e-4
        for self._effort in _EFFORTS:
            similarity, found = self._find(asked, k)
            there = (found >= 0) & (found < len(rows))
            near = single(rows[np.where(there, found, 0).ravel()]).reshape(*found.shape, -1)
            true = np.einsum("nd,nkd->nk", queries, near)
            if not np.allclose(similarity[there], true[there], rtol=0.01, atol=0.01):
                raise RuntimeError("the similarities of the graph are not those of its vectors")
            recall = (there & (true >= best)).mean()
            if recall >= _TUNED_RECALL:
                return
        if recall < _USABLE_RECALL:
            raise RuntimeError(f"the graph finds {recall:.2f} of the neighbours, {_USABLE_RECALL} are wanted")


def _since(host: Host, first: int) -> Host:
    """The host without its labels below the first."""

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        return host.rows(first + start, first + stop)

    return replace(host, epoch=(host.epoch, first), labels=host.labels - first, rows=rows)
