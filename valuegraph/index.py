"""Vector indexes, chosen by size and hardware: exact while that is cheap, inverted files beyond."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from valuegraph.faiss_index import FaissIndex
from valuegraph.tiers import TIERS, device_of, tier_for
from valuegraph.vectors import (
    ExactIndex,
    SearchResult,
    VectorIndex,
    measure_recall,
    sampled_recall,
    split_result,
    unpack,
)

__all__ = [
    "TIERS",
    "ExactIndex",
    "FaissIndex",
    "SearchResult",
    "VectorIndex",
    "index_from_bytes",
    "make_index",
    "measure_recall",
    "promote",
    "sampled_recall",
    "search_beside",
    "search_both",
    "tier_for",
]


def make_index(dim: int, *, tier: str = "auto", device: str = "auto", expected_size: int = 0) -> VectorIndex:
    """An empty index.

    Args:
      dim: width of the vectors.
      tier: "exact" (the oracle, numpy only), one of `TIERS`, or "auto": what suits `expected_size`.
        "cagra" is approximate on a GPU that the cuVS build of FAISS sees, and elsewhere as "flat_fp16".
      device: "cpu", "cuda", or "auto": the GPU where FAISS sees one.
      expected_size: how many vectors are to come, for "auto".

    Raises:
      ValueError: an unknown tier or device, or a GPU, or cagra on "cuda", is asked for and there is none.
    """
    if tier == "exact":
        return ExactIndex(dim)
    if tier == "auto":
        tier = tier_for(expected_size, device_of(device))
    return FaissIndex(dim, tier, device=device)


def promote(index: VectorIndex, tier: str = "auto") -> VectorIndex:
    """The index in the tier that suits its size (or the given one), rebuilt only where that pays.

    A `FaissIndex` is rebuilt in place while others go on searching and changing it, so this may run in a
    background thread; an `ExactIndex` is copied.
    """
    if isinstance(index, FaissIndex):
        index.promote(tier)
        return index
    ids = index.ids()
    new = make_index(index.dim, tier=tier, expected_size=len(ids))
    new.add(index.reconstruct(ids), ids)
    return new


def search_both(
    index: VectorIndex, queries: NDArray[np.float32], more: NDArray[np.float32], k: int
) -> tuple[SearchResult, SearchResult]:
    """`search` of queries + more, and of the queries; see `FaissIndex.search_both`."""
    if isinstance(index, FaissIndex):
        return index.search_both(queries, more, k)
    return split_result(index.search(np.concatenate([queries + more, queries]), k), len(queries))


def search_beside(
    index: VectorIndex, queries: NDArray[np.float32], beside: NDArray[np.float32], k: int
) -> SearchResult:
    """`search` with something to go by, where the index can use it; see `FaissIndex.search`."""
    if isinstance(index, FaissIndex):
        return index.search(queries, k, beside)
    return index.search(queries, k)


def index_from_bytes(data: bytes | memoryview, *, device: str = "auto") -> VectorIndex:
    """The inverse of `VectorIndex.to_bytes`; raises ValueError where the data is no index."""
    tier = unpack(data)[0].get("tier")
    return ExactIndex.from_bytes(data) if tier == "exact" else FaissIndex.from_bytes(data, device=device)
