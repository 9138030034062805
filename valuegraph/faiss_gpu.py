"""A copy of an index on a GPU: a cache that can be thrown away, never the truth.

FAISS on a GPU removes nothing, returns at most 2048 neighbours and serves one thread at a time; so the host
keeps the vectors and the tombstones, and this copy follows it under a lock of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.faiss_search import load_faiss

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_NEIGHBOURS", "GpuCopy", "Host", "gpu_available", "has_cagra", "on_the_stream_of"]

MAX_NEIGHBOURS = 2048
_COPY_ROWS = 1 << 16  # rows that travel to the GPU at once


def gpu_available() -> bool:
    """Whether FAISS was built for GPUs and sees one now."""
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def has_cagra() -> bool:
    """Whether FAISS was built with cuVS, whose graphs only that build has."""
    import faiss

    return hasattr(faiss, "GpuIndexCagra")


@contextmanager
def on_the_stream_of(queries: torch.Tensor, resources: Any, device: int) -> Iterator[None]:
    """FAISS queues its work behind what made the queries, and torch what comes next behind FAISS."""
    import torch

    faiss = load_faiss()
    stream = torch.cuda.current_stream(queries.device).cuda_stream
    resources.setDefaultStream(device, faiss.cast_integer_to_cudastream_t(stream))
    try:
        yield
    finally:
        resources.revertDefaultStream(device)


@dataclass(frozen=True, slots=True)
class Host:
    """What a copy has to know of the index that it follows."""

    index: Any
    """FAISS index on the host."""
    epoch: Hashable
    """Changes whenever labels or the index itself do."""
    labels: int
    """Labels handed out so far, from 0 on."""
    ids: NDArray[np.int64]
    """(at least labels + 1,) id by label, -1 for tombstones and beyond the last."""
    rows: Callable[[int, int], NDArray[np.float32]]
    """The vectors of a flat index from one label to another."""
    flat: bool
    """Whether labels are rows."""
    half: bool
    """Whether vectors are kept in half precision."""


class GpuCopy:
    """Vectors under labels on one GPU: flat like the host's index, tombstones included, or IVF like it."""

    def __init__(self, device: int = 0) -> None:
        import faiss

        self._faiss = faiss
        self._device = device
        self._resources = faiss.StandardGpuResources()
        self._lock = threading.Lock()
        self._index: Any = None
        self._epoch: Hashable = None
        self._labels = 0

    def search(self, host: Host, queries: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
        """(n, k) similarities and labels, k at most `MAX_NEIGHBOURS`."""
        with self._lock:
            self._follow(host)
            similarity, labels = self._index.search(queries, k)
        return similarity, labels

    def search_tensor(self, host: Host, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, k) similarities and labels as tensors of the queries' device, on its current stream."""
        import torch

        queries = queries.detach().to(torch.float32).contiguous()
        similarity = torch.empty(len(queries), k, dtype=torch.float32, device=queries.device)
        labels = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        faiss = self._faiss
        with self._lock:
            self._follow(host)
            with on_the_stream_of(queries, self._resources, self._device):
                self._index.search_c(
                    len(queries),
                    faiss.cast_integer_to_float_ptr(queries.data_ptr()),
                    k,
                    faiss.cast_integer_to_float_ptr(similarity.data_ptr()),
                    faiss.cast_integer_to_idx_t_ptr(labels.data_ptr()),
                )
        return similarity, labels

    def ids_tensor(self, host: Host, device: torch.device) -> torch.Tensor:
        """(labels + 1,) ids by label; -1 for tombstones and at the end, where label -1 points."""
        import torch

        return torch.from_numpy(host.ids[: host.labels + 1].copy()).to(device)

    def clear(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._index = None

    def _follow(self, host: Host) -> None:
        """Bring the copy up to the state of the host, whose caller holds it still."""
        if self._index is None or self._epoch != host.epoch or (self._labels < host.labels and not host.flat):
            self._index, self._epoch = self._copy(host), host.epoch
            self._labels = 0 if host.flat else host.labels
        for start in range(self._labels, host.labels, _COPY_ROWS):
            self._index.add(host.rows(start, min(start + _COPY_ROWS, host.labels)))
        self._labels = host.labels

    def _copy(self, host: Host) -> Any:
        """A flat index still empty, or a whole IVF."""
        faiss = self._faiss
        if host.flat:
            config = faiss.GpuIndexFlatConfig()
            config.device, config.useFloat16 = self._device, host.half
            return faiss.GpuIndexFlatIP(self._resources, host.index.d, config)
        options = faiss.GpuClonerOptions()
        options.indicesOptions = faiss.INDICES_64_BIT
        return faiss.index_cpu_to_gpu(self._resources, self._device, host.index, options)
