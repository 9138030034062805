"""Memories under the keys [z, phi, goal]: what role a step plays, what it says, what it was done for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.config import FitConfig
from valuegraph.index import SearchResult, VectorIndex, make_index, search_beside, search_both
from valuegraph.nodes import NodeTable

__all__ = ["Floats", "Memories", "Neighbours"]

Floats = NDArray[np.float32]

# Bandwidths of the product kernel exp((cos z - 1) / .1 + (cos phi - 1) / .02 + (cos goal - 1) / .005): one
# step text has many near neighbours that mean something else, and a goal is the same one or another.
_TEMPERATURE = (0.1, 0.02, 0.005)
_NEIGHBOURS = 32
_EQUAL = 1.0 - 1e-5  # keys that are one but for rounding


class Neighbours(NamedTuple):
    """Nearest nodes of n queries."""

    nodes: NDArray[np.int64]
    """(n, k), -1 where there are fewer."""
    kernel: NDArray[np.float64]
    """(n, k) in [0, 1]: product kernel of the parts of the key that the query has."""

    @property
    def support(self) -> NDArray[np.float64]:
        """(n,) in [0, 1]: kernel mass, 1 on a memory and 0 far from all."""
        return np.minimum(self.kernel.sum(axis=1), 1.0)


class Memories:
    """Nodes in a `VectorIndex`, and what is read from them by likeness."""

    def __init__(
        self, dim: int, z_dim: int = 0, config: FitConfig | None = None, index: VectorIndex | None = None
    ) -> None:
        self.dim, self.z_dim = dim, z_dim
        self.config = config or FitConfig()
        rates = np.array([1.0 / t for t in _TEMPERATURE]) * [z_dim > 0, True, True]
        self._rate = float(rates.sum())
        self._share = rates / self._rate
        self.same = min(self.config.merge, _EQUAL)
        """Similarity from which on two keys are one node."""
        self.index = index or make_index(self.width, device=self.config.device)
        self.nodes = NodeTable()

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def texts(self) -> Sequence[str]:
        """What the steps said."""
        return self.nodes.texts

    @property
    def values(self) -> NDArray[np.float64]:
        """(n,) value h of each node, in [0, 1]."""
        return self.nodes.values

    @property
    def goal_of(self) -> NDArray[np.int32]:
        """(n,) row of the goal that each node was made for."""
        return self.nodes.goal_of

    @property
    def width(self) -> int:
        """Width of a key: z, phi, goal, and one column that says that there is no goal."""
        return self.z_dim + 2 * self.dim + 1

    def column(self, name: str) -> NDArray[np.float64]:
        """(n,) a statistic of the nodes: visits, credit (sum of y), episodes, successes, won, ended; "gone",
        the weight of edges to nodes since forgotten, and "gone_worth", the same times gamma h of these."""
        return self.nodes.column(name)

    def keys(self, z: Floats | None, steps: Floats | None, goals: Floats | None) -> Floats:
        """(n, K) keys or queries; a part that is None is left empty and does not weigh in a query."""
        n = next(len(part) for part in (z, steps, goals) if part is not None)
        keys = np.zeros((n, self.width), np.float32)
        root = np.sqrt(self._share).astype(np.float32)
        if z is not None and self.z_dim:
            keys[:, : self.z_dim] = root[0] * z
        if steps is not None:
            keys[:, self.z_dim : self.z_dim + self.dim] = root[1] * steps
        if goals is not None:
            keys[:, self.z_dim + self.dim : -1] = root[2] * goals
            keys[:, -1] = root[2] * ~goals.any(axis=1)
        return keys

    def neighbours(self, queries: Floats, k: int = _NEIGHBOURS) -> Neighbours:
        """The k nearest nodes and the product kernel exp((q . key - q . q) * rate) over the query's parts."""
        if not len(self):
            return Neighbours(np.full((len(queries), 1), -1), np.zeros((len(queries), 1)))
        return self._weighed(queries, self.index.search(queries, min(k, len(self))))

    def neighbours_by_role(
        self, z: Floats | None, steps: Floats, goals: Floats, k: int = _NEIGHBOURS
    ) -> tuple[Neighbours, Neighbours]:
        """`neighbours` at (z, phi, goal), and at (phi, goal) whatever the role; in one search."""
        queries = self.keys(None, steps, goals)
        if z is None or not len(self):
            near = self.neighbours(queries, k)
            return near, near
        role = self.keys(z, None, None)
        both = search_both(self.index, queries, role, min(k, len(self)))
        return self._weighed(queries + role, both[0]), self._weighed(queries, both[1])

    def _weighed(self, queries: Floats, found: SearchResult) -> Neighbours:
        full = np.square(queries, dtype=np.float64).sum(axis=1, keepdims=True)
        kernel = np.exp(np.minimum((found.similarity - full) * self._rate, 0.0))
        return Neighbours(found.ids, np.where(found.ids >= 0, kernel, 0.0))

    def read(
        self, near: Neighbours, column: NDArray[np.float64] | None = None, prior: float = 1e-3
    ) -> NDArray[np.float64]:
        """(n,) kernel read sum_i k_i n_i h_i / (sum_i k_i n_i + prior), n_i being visits.

        Off the support of the memory it goes to zero, never to the mean (Pritzel et al. 2017, "Neural
        Episodic Control", without their normalisation).
        """
        if not len(self):
            return np.zeros(len(near.nodes))
        values = self.values if column is None else column
        return self._mean(near, values[near.nodes], prior)

    def rate(self, near: Neighbours, name: str, prior: float = 1e-3) -> NDArray[np.float64]:
        """(n,) kernel read of how often a visit was what a column counts."""
        if not len(self):
            return np.zeros(len(near.nodes))
        visits = np.maximum(self.column("visits")[near.nodes], 1.0)
        return self._mean(near, self.column(name)[near.nodes] / visits, prior)

    def _mean(self, near: Neighbours, values: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
        weight = near.kernel * self.column("visits")[near.nodes]
        return (weight * values).sum(axis=1) / (weight.sum(axis=1) + prior)

    def step_similarity(self, steps: Floats, goals: Floats | None = None) -> NDArray[np.float64]:
        """(n,) cosine to the nearest remembered step, whatever it was done for; -1 in an empty memory.

        A large memory, which is not read whole, is also read where `goals` are near.
        """
        if not len(self):
            return np.full(len(steps), -1.0)
        wanted = self.keys(None, steps, None)
        beside = wanted if goals is None else self.keys(None, steps, goals)
        found = search_beside(self.index, wanted, beside, 1)
        return found.similarity[:, 0].astype(np.float64) / self._share[1]

    def step_embeddings(self, nodes: NDArray[np.int64]) -> Floats:
        """(n, d) the phi of nodes."""
        return self.step_part(self.keys_of(nodes))

    def step_part(self, keys: Floats) -> Floats:
        """(n, d) the phi in keys."""
        return keys[:, self.z_dim : self.z_dim + self.dim] / np.float32(np.sqrt(self._share[1]))

    def keys_of(self, nodes: NDArray[np.int64]) -> Floats:
        """(n, K) the keys of nodes."""
        distinct, where = np.unique(nodes, return_inverse=True)
        return self.index.reconstruct(distinct)[where]

    def settle(self, near: Neighbours, rounds: int = 3) -> int:
        """The node on which iterative retrieval comes to rest, for one query."""
        for _ in range(rounds):
            weight = near.kernel[0] / near.kernel[0].sum()
            query = (weight[:, None] * self.keys_of(near.nodes[0])).sum(axis=0, keepdims=True)
            near = self.neighbours((query / np.linalg.norm(query)).astype(np.float32))
        return int(near.nodes[0, 0])

    def visits_near(self, queries: Floats) -> NDArray[np.float64]:
        """(n,) visits of the nodes that a query falls in: those within the merge threshold of it."""
        near = self.neighbours(queries)
        if not len(self):
            return np.zeros(len(queries))
        same = near.kernel >= np.exp((self.same - 1.0) * self._rate)
        return np.where(same, self.column("visits")[near.nodes], 0.0).sum(axis=1)
