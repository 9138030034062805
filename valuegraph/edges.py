"""Hebbian edges between nodes: who fires together, in order, is linked, and surprise links harder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.adjacency import CSR, EDGE, LinkedEdges

__all__ = ["EdgeEvents", "EdgeTable", "hebbian_events"]

_CHUNK = 1 << 16  # events between two looks at the room that is left
_MAX_LOAD = 0.6  # share of slots in use: linear probing stays short
_MAX_NODES = 2**31 - 1
_LEFT_OUT = 8  # visits between two that are linked


class EdgeEvents(NamedTuple):
    """Amounts to add to directed edges, in the order in which they happened."""

    tails: NDArray[np.int64]
    """(E,) node i."""
    heads: NDArray[np.int64]
    """(E,) node j, visited after i."""
    amounts: NDArray[np.float32]
    """(E,) at least 0."""


def hebbian_events(
    nodes: ArrayLike, lam: float = 0.0, kappa: float = 0.0, delta: ArrayLike | None = None, max_lag: int = 8
) -> EdgeEvents:
    """Hebbian events of one episode that visits n_0 .. n_(T-1), for each pair of visits s before t:

      lambda^(lag-1) * m_t to the edge from n_s to n_t,  lag = t - s <= max_lag,  m_t = 1 + kappa |delta_t|.

    The trace of the earlier visit has decayed by the time the later one arrives, whose surprise delta_t is
    the third factor (Gerstner et al. 2018, "Eligibility traces and three-factor rules"). With lam=0 and
    kappa=0 the events are the transitions, each counting one; a node followed by itself counts too.

    Args:
      nodes: (T,) visited nodes.
      lam: decay of the trace per step, in [0, 1].
      kappa: weight of the surprise, at least 0.
      delta: (T,) surprise of each step; zero where not given.
      max_lag: how far apart two linked visits may be, at least 1.

    Returns:
      Events ordered by the later visit, then by lag.

    Raises:
      ValueError: an argument out of range, shapes that differ, or a surprise that is not finite.

    >>> hebbian_events([4, 2, 7], lam=0.5)
    EdgeEvents(tails=array([4, 2, 4]), heads=array([2, 7, 7]), amounts=array([1. , 1. , 0.5], dtype=float32))
    """
    path = np.asarray(nodes, dtype=np.int64)
    if path.ndim != 1:
        raise ValueError(f"nodes must have one dimension, got shape {path.shape}")
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must be in [0, 1], got {lam}")
    if not 0.0 <= kappa < np.inf:
        raise ValueError(f"kappa must be finite and at least 0, got {kappa}")
    if max_lag < 1:
        raise ValueError(f"max_lag must be at least 1, got {max_lag}")
    surprise = np.zeros(len(path)) if delta is None else np.asarray(delta, dtype=np.float64)
    if surprise.shape != path.shape:
        raise ValueError(f"delta has shape {surprise.shape}, nodes {path.shape}")
    if not np.isfinite(surprise).all():
        raise ValueError("delta must be finite")
    lags = np.arange(1, (max_lag if lam > 0.0 else 1) + 1)
    later, lag = np.meshgrid(np.arange(len(path)), lags, indexing="ij")
    seen = lag <= later
    later, lag = later[seen], lag[seen]
    amounts = np.power(float(lam), lag - 1) * (1.0 + kappa * np.abs(surprise[later]))
    return EdgeEvents(path[later - lag], path[later], amounts.astype(np.float32))


class EdgeTable:
    """Directed weighted edges between n nodes in memory, made for tens of millions of events a second.

    Edges lie in order of insertion; an open-addressing hash table finds one by its two ends, and chains lead
    along the edges that leave or enter a node. Some 50 bytes an edge. One writer at a time and no reader
    meanwhile; what `snapshot` returns is a copy and stays as it is.

    >>> table = EdgeTable(3)
    >>> table.upsert([0, 0, 0], [1, 2, 1], [1.0, 1.0, 1.0])
    >>> table.weights_of([0, 0, 2], [1, 2, 0])
    array([2., 1., 0.], dtype=float32)
    """

    def __init__(self, nodes: int = 0) -> None:
        self._size = 0
        self._slots = np.full(8, -1, np.int64)
        self._edges = np.empty(0, EDGE)
        self._nodes = 0
        self._first_out = np.empty(0, np.int32)
        self._first_in = np.empty(0, np.int32)
        self._out_weight = np.empty(0, np.float64)
        self.grow(nodes)

    @classmethod
    def from_edges(cls, tails: ArrayLike, heads: ArrayLike, weights: ArrayLike, nodes: int) -> EdgeTable:
        """A table of the given edges, in the given order; the weights of equal ones are added up."""
        table = cls(nodes)
        table.upsert(tails, heads, weights)
        return table

    @property
    def nodes(self) -> int:
        """Number of nodes, n."""
        return self._nodes

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use."""
        arrays = (self._slots, self._edges, self._first_out, self._first_in, self._out_weight)
        return sum(array.nbytes for array in arrays)

    def grow(self, nodes: int) -> None:
        """Make room for node numbers below `nodes`; never fewer than before."""
        if nodes > _MAX_NODES:
            raise ValueError(f"at most {_MAX_NODES} nodes, got {nodes}")
        if nodes <= self._nodes:
            return
        if nodes > len(self._first_out):
            room = max(nodes, len(self._first_out) * 3 // 2)
            self._first_out = _extended(self._first_out, room, -1)
            self._first_in = _extended(self._first_in, room, -1)
            self._out_weight = _extended(self._out_weight, room, 0)
        self._nodes = nodes

    def upsert(self, tails: ArrayLike, heads: ArrayLike, amounts: ArrayLike, eta: float = 0.0) -> None:
        """Hebb's rule w_ij <- (1 - eta) w_ij + amount, for each event in turn; a new edge starts from zero.

        Forgetting is local: an edge decays when it is used, so the weight of a much used edge settles where
        what it loses equals what it gains.

        Args:
          tails: (E,) node i, in [0, n).
          heads: (E,) node j, in [0, n).
          amounts: (E,) at least 0.
          eta: share forgotten with each event, in [0, 1].

        Raises:
          ValueError: an argument out of range or shapes that differ; nothing has changed then.
        """
        i, j = self._check_pairs(tails, heads)
        add = np.ascontiguousarray(amounts, dtype=np.float32)
        if add.shape != i.shape:
            raise ValueError(f"{len(i)} edges, but amounts of shape {add.shape}")
        if len(add) and not (add.min() >= 0.0 and np.isfinite(add.max())):
            raise ValueError("amounts must be finite and at least 0")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        from valuegraph.edge_kernels import upsert

        for start in range(0, len(i), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._reserve(self._size + len(i[chunk]))
            self._size = upsert(
                self._slots,
                self._edges,
                self._first_out,
                self._first_in,
                self._out_weight,
                self._size,
                i[chunk],
                j[chunk],
                add[chunk],
                eta,
            )

    def weights_of(self, tails: ArrayLike, heads: ArrayLike) -> NDArray[np.float32]:
        """(E,) weight of each edge asked for, 0 where there is none."""
        from valuegraph.edge_kernels import look_up

        i, j = self._check_pairs(tails, heads)
        found = np.empty(len(i), np.float32)
        look_up(self._slots, self._edges, i, j, found)
        return found

    def followed(
        self, nodes: NDArray[np.int64], kernel: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How well visits that are known by what they are near to follow edges, and go against them.

          f_t = max sqrt(k_(t-1)i k_tj) over edges from n_(t-1)i to n_tj,  b_t the same from n_tj to n_(t-1)i

        Args:
          nodes: (T, k) nodes n near each visit, -1 for none.
          kernel: (T, k) how near they are, in [0, 1].

        Returns:
          f and b, (T,) each, in [0, 1]; 0 for the first visit, and for what is fainter than .01.

        >>> table = EdgeTable.from_edges([0, 1], [1, 2], [1.0, 1.0], nodes=3)
        >>> table.followed(np.array([[0], [1], [0]]), np.array([[1.0], [0.25], [1.0]]))
        (array([0. , 0.5, 0. ]), array([0. , 0. , 0.5]))
        """
        from valuegraph.edge_kernels import follow

        forward, backward = np.zeros(len(nodes)), np.zeros(len(nodes))
        near = np.ascontiguousarray(nodes, np.int64), np.ascontiguousarray(kernel, np.float64)
        follow(self._slots, self._edges, *near, forward, backward)
        return forward, backward

    def reached(
        self, nodes: NDArray[np.int64], kernel: NDArray[np.float64], begun: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """How surely a chain of edges leads from a beginning to each visit, up to eight others left out.

          r_t = max(b_t, max_s min(r_s, f_st)),  t - 9 <= s < t,

        f_st being how near visits s and t are to an edge, as in `followed`, whose arguments these are.

        Args:
          begun: (T,) in [0, 1], how surely each visit is a beginning.

        >>> table = EdgeTable.from_edges([0, 1], [1, 2], [1.0, 1.0], nodes=4)
        >>> visits = np.array([[0], [1], [3], [2]])
        >>> table.reached(visits, np.array([[1.0], [0.25], [1.0], [1.0]]), np.array([1.0, 0.0, 0.0, 0.0]))
        array([1. , 0.5, 0. , 0.5])
        """
        from valuegraph.edge_kernels import reach

        reached = np.array(begun, np.float64)
        near = np.ascontiguousarray(nodes, np.int64), np.ascontiguousarray(kernel, np.float64)
        reach(self._slots, self._edges, *near, _LEFT_OUT + 1, reached)
        return reached

    def edges(self) -> EdgeEvents:
        """Every edge with its weight, in order of insertion: what `from_edges` takes."""
        edges = self._edges[: self._size]
        return EdgeEvents(
            edges["tail"].astype(np.int64), edges["head"].astype(np.int64), edges["weight"].copy()
        )

    def snapshot(self) -> CSR:
        """The edges now, sorted by tail and head."""
        from valuegraph.edge_kernels import sort_rows

        indptr = np.zeros(self._nodes + 1, np.int64)
        indices, weights = np.empty(self._size, np.int32), np.empty(self._size, np.float32)
        sort_rows(self._edges, self._size, indptr, indices, weights)
        return CSR(indptr, indices, weights)

    def links(self) -> LinkedEdges:
        """The table's own arrays as linked edges, for repairs of values: valid until the next change."""
        n = self._nodes
        return LinkedEdges(self._edges, self._first_out[:n], self._first_in[:n], self._out_weight[:n])

    def __len__(self) -> int:
        return self._size

    def _check_pairs(self, tails: ArrayLike, heads: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        i, j = (np.ascontiguousarray(ends, dtype=np.int64) for ends in (tails, heads))
        if i.ndim != 1 or i.shape != j.shape:
            raise ValueError(f"tails and heads must be of one length, got shapes {i.shape} and {j.shape}")
        for name, ends in (("tails", i), ("heads", j)):
            if len(ends) and (ends.min() < 0 or ends.max() >= self._nodes):
                raise ValueError(f"{name} must be in [0, {self._nodes})")
        return i, j

    def _reserve(self, size: int) -> None:
        """Room for `size` edges."""
        from valuegraph.edge_kernels import fill_slots

        if size > len(self._edges):
            longer = np.empty(max(size, len(self._edges) * 3 // 2), EDGE)
            longer[: self._size] = self._edges[: self._size]
            self._edges = longer
        if size > _MAX_LOAD * len(self._slots):
            self._slots = np.full(1 << int(np.ceil(np.log2(size / _MAX_LOAD))), -1, np.int64)
            fill_slots(self._slots, self._edges, self._size)


def _extended(array: NDArray, room: int, fill: int) -> NDArray:
    longer = np.full(room, fill, array.dtype)
    longer[: len(array)] = array
    return longer
