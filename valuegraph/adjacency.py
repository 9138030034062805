"""Two views of the same directed edges: rows in order for full sweeps, linked edges for small repairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CSR", "EDGE", "LinkedEdges"]


@dataclass(frozen=True, slots=True)
class CSR:
    """A directed graph of n nodes and E edges in compressed sparse rows: an immutable snapshot.

    Raises ValueError where the three arrays do not describe such a graph, or a weight is negative or not
    finite.
    """

    indptr: NDArray[np.int64]
    """(n+1,) the edges of node i are those from indptr[i] to indptr[i+1]."""
    indices: NDArray[np.int32]
    """(E,) head of each edge, in [0, n)."""
    weights: NDArray[np.float32]
    """(E,) at least 0."""

    def __post_init__(self) -> None:
        for name, dtype in (("indptr", np.int64), ("indices", np.int32), ("weights", np.float32)):
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if array.ndim != 1:
                raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
            object.__setattr__(self, name, array)
        edges = len(self.indices)
        if not len(self.indptr) or self.indptr[0] != 0 or self.indptr[-1] != edges:
            raise ValueError(f"indptr must run from 0 to {edges}, the number of indices")
        if (np.diff(self.indptr) < 0).any():
            raise ValueError("indptr must not decrease")
        if len(self.weights) != edges:
            raise ValueError(f"{edges} indices, but {len(self.weights)} weights")
        if edges:
            if self.indices.min() < 0 or self.indices.max() >= self.nodes:
                raise ValueError(f"indices must be in [0, {self.nodes})")
            if not self.weights.min() >= 0.0 or not np.isfinite(self.weights.max()):
                raise ValueError("weights must be finite and at least 0")

    @property
    def nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.indptr) - 1

    @property
    def sources(self) -> NDArray[np.int32]:
        """(E,) tail of each edge."""
        return np.repeat(np.arange(self.nodes, dtype=np.int32), np.diff(self.indptr))

    def row_sums(self) -> NDArray[np.float64]:
        """(n,) sum_j w_ij, added up in double precision."""
        return np.bincount(self.sources, weights=self.weights, minlength=self.nodes).astype(np.float64)

    def __len__(self) -> int:
        return len(self.indices)


# One record an edge: following a chain costs one cache miss per edge, not one per field.
EDGE = np.dtype(
    [
        ("tail", np.int32),
        ("head", np.int32),
        ("weight", np.float32),
        ("next_out", np.int32),
        ("next_in", np.int32),
    ]
)


class LinkedEdges(NamedTuple):
    """The same edges as linked lists: one is added in constant time, and those that leave a node can be
    followed as well as those that enter it. The arrays may be longer than what is in use, and belong to
    whoever made them: `EdgeTable.links` hands out its own, without a copy.
    """

    edges: NDArray[np.void]
    """(E,) of `EDGE`: next_out is the next edge that leaves the same tail, next_in the next one that enters
    the same head, -1 after the last."""
    first_out: NDArray[np.int32]
    """(n,) the first edge that leaves each node, -1 without any."""
    first_in: NDArray[np.int32]
    """(n,) the first edge that enters each node, -1 without any."""
    out_weight: NDArray[np.float64]
    """(n,) sum_j w_ij."""

    @classmethod
    def from_csr(cls, csr: CSR) -> LinkedEdges:
        """The edges of a snapshot, linked."""
        from valuegraph.edge_kernels import link

        edges = np.empty(len(csr), EDGE)
        edges["tail"], edges["head"], edges["weight"] = csr.sources, csr.indices, csr.weights
        first_out, first_in = (np.full(csr.nodes, -1, np.int32) for _ in range(2))
        link(edges, 0, len(edges), first_out, first_in)
        return cls(edges, first_out, first_in, csr.row_sums())
