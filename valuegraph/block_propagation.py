"""Values by block: each Ray actor solves a run of nodes, only values at the boundaries travel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.adjacency import CSR
from valuegraph.propagation import Solution, check_gamma, first_hit, max_product, unit_values
from valuegraph.ray_workers import Workers

__all__ = ["Block", "Cut", "cut", "exchange", "propagate_blocks"]

Values = NDArray[np.float64]
Nodes = NDArray[np.int64]


def propagate_blocks(
    transitions: CSR,
    reward: ArrayLike,
    gamma: float,
    blocks: int,
    *,
    best: bool = False,
    tol: float = 1e-9,
    max_rounds: int = 1_000,
    num_cpus: float = 1.0,
) -> Solution:
    """`first_hit`, or `max_product` where `best`, by block Jacobi (Bertsekas & Tsitsiklis 1989, section 3.1).

    Block b owns a run of nodes and the edges that leave them. A round solves every block for the latest
    values of the nodes outside it that it has edges to, h_b = (r_b + gamma P_bo h_o) + gamma P_bb h_b; then
    each is sent what it reads of the others. From zero all values rise to the same smallest solution: for
    `best` within as many rounds as the best way crosses blocks, else to rho / (1 - rho) of the residual. A
    block that dies is made anew and loses nothing but its start.

    Args:
      transitions: P, n nodes, numbered such that successors are mostly in the same block.
      reward: (n,) in [0, 1]; the source of `max_product`.
      gamma: discount in [0, 1].
      blocks: how many actors, at most n.
      best: the best known way instead of the discounted first hit.
      tol: largest change of a value in the last round.
      max_rounds: where to give up; see `Solution.converged`.
      num_cpus: what Ray reserves for each block.

    Returns:
      The solution; its sweeps are rounds.

    Raises:
      ValueError: an argument out of range, or of the wrong shape.
      WorkerLostError: a block died again and again.
    """
    parts = cut(transitions, reward, gamma, blocks, best=best, tol=tol)
    workers = Workers(Block, parts.arguments, num_cpus=num_cpus, restarts=2)
    try:
        return exchange(workers, parts, tol, max_rounds)
    finally:
        workers.close()


class Cut(NamedTuple):
    """A graph in blocks."""

    arguments: list[tuple[Any, ...]]
    """Of the constructor of each `Block`."""
    read: Nodes
    """(m,) the boundary: nodes that some other block has edges to, ascending."""
    places: list[NDArray[np.int64]]
    """For each block, where in `read` the nodes that it reads are."""


def cut(
    transitions: CSR, reward: ArrayLike, gamma: float, blocks: int, *, best: bool = False, tol: float = 1e-9
) -> Cut:
    """See `propagate_blocks`."""
    n = transitions.nodes
    r = unit_values("reward", reward, n)
    check_gamma(gamma)
    if not 1 <= blocks <= max(1, n):
        raise ValueError(f"blocks must be in [1, {max(1, n)}], got {blocks}")
    runs = list(pairwise(np.linspace(0, n, blocks + 1).astype(np.int64).tolist()))
    rows = [_rows(transitions, *run) for run in runs]
    outside = [_outside(heads, *run) for (_, heads, _), run in zip(rows, runs, strict=True)]
    read = np.unique(np.concatenate(outside))
    arguments: list[tuple[Any, ...]] = []
    for (start, stop), own, foreign in zip(runs, rows, outside, strict=True):
        exports = read[(read >= start) & (read < stop)] - start
        arguments.append((*own, r[start:stop], gamma, start, foreign, exports, best, tol))
    return Cut(arguments, read, [np.searchsorted(read, foreign) for foreign in outside])


def exchange(workers: Workers, parts: Cut, tol: float = 1e-9, max_rounds: int = 1_000) -> Solution:
    """Rounds of `Block.solve` until no value changes by more than `tol`."""
    boundary, residual, rounds = np.zeros(len(parts.read)), np.inf, 0
    while rounds < max_rounds and residual > tol:
        answers = workers.each("solve", _shares(boundary, parts))
        boundary, rounds = np.concatenate([values for values, _ in answers]), rounds + 1
        # Where no block reads another, one round was all.
        residual = max(change for _, change in answers) if len(boundary) else 0.0
    values = np.concatenate(workers.each("values", _shares(boundary, parts)))
    return Solution(values, float(residual), rounds, bool(residual <= tol))


class Block:
    """A run of nodes, first to first + m - 1, with the edges that leave them."""

    def __init__(
        self,
        indptr: NDArray[np.int64],
        indices: NDArray[np.int32],
        weights: NDArray[np.float32],
        reward: Values,
        gamma: float,
        first: int,
        foreign: Nodes,
        exports: Nodes,
        best: bool,
        tol: float,
    ) -> None:
        """Heads are numbered as in the whole graph, and so are the `foreign` ones, ascending; `exports`, the
        nodes that others read, count from `first`.
        """
        nodes = len(reward)
        tails = np.repeat(np.arange(nodes), np.diff(indptr))
        inside = (indices >= first) & (indices < first + nodes)
        starts = np.concatenate([[0], np.cumsum(np.bincount(tails[inside], minlength=nodes))])
        self._inside = CSR(starts, indices[inside] - first, weights[inside])
        self._tails, self._heads = tails[~inside], np.searchsorted(foreign, indices[~inside])
        self._weights = gamma * weights[~inside].astype(np.float64)
        if best:  # as `max_product` does: no loop feeds on itself
            self._weights = np.minimum(self._weights, np.nextafter(1.0, 0.0))
        self._reward, self._gamma, self._exports, self._best, self._tol = reward, gamma, exports, best, tol
        self._values = np.zeros(nodes)

    def solve(self, outside: Values) -> tuple[Values, float]:
        """Values of the exported nodes given those of the foreign ones, and the largest change of any."""
        before, self._values = self._values, self.values(outside)
        return self._values[self._exports], float(np.abs(self._values - before).max(initial=0.0))

    def values(self, outside: Values) -> Values:
        """Values of all nodes of the block, given those of the foreign ones."""
        own, carried = self._reward.copy(), self._weights * outside[self._heads]
        if self._best:
            np.maximum.at(own, self._tails, carried)
            return max_product(self._inside, own, self._gamma).values
        own = np.minimum(own + np.bincount(self._tails, weights=carried, minlength=len(own)), 1.0)
        return first_hit(self._inside, own, self._gamma, tol=0.1 * self._tol, initial=self._values).values


def _shares(boundary: Values, parts: Cut) -> Sequence[tuple[Values]]:
    """What each block reads of the boundary."""
    return [(boundary[place],) for place in parts.places]


def _rows(
    csr: CSR, start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The edges that leave nodes start to stop - 1, as arrays of a CSR of their own."""
    edges = slice(int(csr.indptr[start]), int(csr.indptr[stop]))
    return csr.indptr[start : stop + 1] - edges.start, csr.indices[edges], csr.weights[edges]


def _outside(heads: NDArray[np.int32], start: int, stop: int) -> Nodes:
    """Nodes outside a block that it has edges to."""
    return np.unique(heads[(heads < start) | (heads >= stop)]).astype(np.int64)
