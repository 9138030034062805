"""The value graph: memories that are at once a retrieval store and the nodes of a graph of what led to what.

A step is stored under the key [z, phi, goal]: what role it plays, what it says, what it was done for. Steps
with nearly equal keys are one node. Edges follow Hebb's rule, values flow backwards along them, and the
successful episodes are kept as paths of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.config import FitConfig
from valuegraph.edges import EdgeTable, hebbian_events
from valuegraph.index import (
    SearchResult,
    VectorIndex,
    index_from_bytes,
    make_index,
    search_beside,
    search_both,
)
from valuegraph.nodes import COUNTED, LEDGER, NodeTable
from valuegraph.paths import Goals, Path, Paths
from valuegraph.placing import Memory, Placing, Visit, groups, newest
from valuegraph.propagation import (
    first_hit,
    max_product,
    raise_values,
    sweep_values,
    transition_probabilities,
)

__all__ = ["Memory", "Neighbours", "Path", "ValueGraph", "Visit"]

Floats = NDArray[np.float32]

# Bandwidths of the product kernel exp((cos z - 1) / .1 + (cos phi - 1) / .02 + (cos goal - 1) / .005): one
# step text has many near neighbours that mean something else, and a goal is the same one or another.
_TEMPERATURE = (0.1, 0.02, 0.005)
_NEIGHBOURS = 32
_NEARLY = 0.99
_WORTH = 0.1
_EQUAL = 1.0 - 1e-5  # keys that are one but for rounding
_TOLERANCE = 1e-6  # residual of the values: none is further than it / (1 - gamma) from the exact one
_FADED = 1e-3  # weight below which an edge is forgotten
_MANY = 4  # a change of more than one node in so many calls for a sweep over all of them


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


class ValueGraph:
    """Nodes in a `VectorIndex`, Hebbian edges between them, values by backward credit, remembered paths.

    One writer at a time, and no reader meanwhile: `RewardModel` sees to that.
    """

    def __init__(
        self, dim: int, z_dim: int = 0, config: FitConfig | None = None, index: VectorIndex | None = None
    ) -> None:
        self.dim, self.z_dim = dim, z_dim
        self.config = config or FitConfig()
        rates = np.array([1.0 / t for t in _TEMPERATURE]) * [z_dim > 0, True, True]
        self._rate = float(rates.sum())
        self._same = min(self.config.merge, _EQUAL)
        self._share = rates / self._rate
        self.index = index or make_index(self.width, device=self.config.device)
        self.edges = EdgeTable()
        self.nodes = NodeTable()
        self.goals, self._paths = Goals(), Paths()
        self.episodes = 0
        self.rested = np.zeros(0, np.float32)
        """(E',) weights of the edges when the graph was last consolidated."""

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def texts(self) -> Sequence[str]:
        """What the steps said."""
        return self.nodes.texts

    @property
    def paths(self) -> list[Path]:
        """The remembered ways; their places in this list are their numbers."""
        return self._paths.rows

    @property
    def paths_to(self) -> Mapping[int, Sequence[int]]:
        """Numbers of the paths to each goal."""
        return self._paths.to

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
        rows = self._keys_of(nodes)
        return rows[:, self.z_dim : self.z_dim + self.dim] / np.float32(np.sqrt(self._share[1]))

    def _keys_of(self, nodes: NDArray[np.int64]) -> Floats:
        distinct, where = np.unique(nodes, return_inverse=True)
        return self.index.reconstruct(distinct)[where]

    def goal_similarity(self, goal: Floats) -> NDArray[np.float64]:
        """(G,) similarity of a goal to every remembered one; two absent goals are equal."""
        return self.goals.similarity(goal)

    def write(self, visits: Sequence[Visit]) -> None:
        """Store episodes, link their steps by Hebb's rule, and send credit backwards through the graph."""
        start, touched = len(self), []
        for group in groups(visits):
            touched += self._write(group)
        self._repair(np.unique(np.concatenate(touched)), start)

    def _write(self, visits: Sequence[Visit]) -> list[NDArray[np.int64]]:
        """Store some episodes; returns the nodes that each of them visited."""
        keys = np.concatenate([[memory.key for memory in visit.memories] for visit in visits])
        placed = Placing(self.index, keys)
        routes = []
        for visit in visits:
            goal = self.goals.row(visit.goal_text, visit.goal)
            nodes, predicted = self._place(placed, visit, goal)
            self._count(visit, goal, nodes, np.abs(visit.credit - predicted))
            routes.append(nodes)
        placed.store()
        return routes

    def _count(
        self, visit: Visit, goal: int, nodes: NDArray[np.int64], surprise: NDArray[np.float64]
    ) -> None:
        config, last = self.config, nodes[-1]
        visits, credit, episodes, successes, won, ended = (self.column(name) for name in COUNTED)
        if len(nodes) > 1:
            events = hebbian_events(nodes, config.trace, config.surprise, surprise)
            self.edges.upsert(events.tails, events.heads, events.amounts, config.forgetting)
        distinct = np.unique(nodes)
        np.add.at(visits, nodes, 1.0)
        np.add.at(credit, nodes, visit.credit)
        episodes[distinct] += 1.0
        successes[distinct] += visit.outcome
        won[last] += visit.outcome
        # What earns ends where it earns, however the environment went on; a cut-off failure ends nowhere.
        ended[last] += float(visit.terminated or visit.outcome > 0.0)
        self.goals.tried[goal] += 1.0
        self.goals.reached[goal] += visit.outcome
        self.episodes += 1
        if visit.outcome > 0.5:
            self._paths.remember(Path(goal, tuple(nodes.tolist()), visit.outcome), config.paths_per_goal)

    def _place(
        self, placed: Placing, visit: Visit, goal: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The node of each step. Stored is what is novel, or near a memory but worth something else."""
        keys, similarity, nearest = placed.next(len(visit.memories))
        nodes, predicted = np.empty(len(keys), np.int64), np.zeros(len(keys))
        known = nearest >= 0
        predicted[known] = self.values[nearest[known]]
        worth = (np.abs(visit.credit - predicted) > _WORTH) | (self.config.merge == 1.0)
        stored = (similarity < self._same) & ((similarity < _NEARLY) | worth)
        nodes[~stored] = nearest[~stored]
        fresh, place = newest(keys, np.flatnonzero(stored), self._same)
        nodes[stored] = len(self) + place
        if fresh:
            placed.add(keys[fresh])
            self.edges.grow(len(self) + len(fresh))
            self.nodes.extend((visit.memories[t].text for t in fresh), goal, predicted[fresh])
        return nodes, predicted

    def gathered(
        self, kept: NDArray[np.int64], place: NDArray[np.int64], index: VectorIndex, decay: float
    ) -> ValueGraph:
        """A copy with fewer nodes: kept[i] is its node i, and node j here is its node place[j], -1 if none.

        Edges unused since the last time weigh 1 - decay of what they did. Where a way led to what is not in
        the copy, it ends with what that was worth, so values stay as they are.
        """
        copy = ValueGraph(self.dim, self.z_dim, self.config, index)
        copy.goals, copy.episodes = self.goals, self.episodes
        stays = place >= 0
        at, most = place[stays], len(kept)
        ledger = {name: np.bincount(at, self.column(name)[stays], most).astype(np.float64) for name in LEDGER}
        edges, amounts = self.edges.edges(), self.edges.edges().amounts
        unused = np.zeros(len(amounts), np.bool_)
        unused[: len(self.rested)] = amounts[: len(self.rested)] == self.rested
        amounts = np.where(unused, np.float32(1.0 - decay), np.float32(1.0)) * amounts
        tails, heads = place[edges.tails], place[edges.heads]
        held = (amounts > _FADED) & (tails >= 0)
        inside, cut = held & (heads >= 0), held & (heads < 0)
        copy.edges = EdgeTable.from_edges(tails[inside], heads[inside], amounts[inside], len(kept))
        copy.rested = copy.edges.edges().amounts
        worth = self.config.gamma * self.values[edges.heads[cut]]
        np.add.at(ledger["gone"], tails[cut], amounts[cut])
        np.add.at(ledger["gone_worth"], tails[cut], amounts[cut] * worth)
        texts = (self.texts[i] for i in kept.tolist())
        copy.nodes = NodeTable(texts, self.goal_of[kept], self.values[kept], ledger=ledger)
        for path in self.paths:
            nodes = place[np.array(path.nodes)]
            if (nodes >= 0).any():
                copy._paths.remember(replace(path, nodes=tuple(nodes[nodes >= 0].tolist())))
        copy.replay()
        return copy

    def replay(self) -> None:
        """Send credit backwards: along the stored paths first, the most successful first and each from its
        end, then wherever values do not agree with what follows."""
        paths = sorted(self.paths, key=lambda path: -path.outcome * path.count)
        order = [node for path in paths for node in reversed(path.nodes)] + list(range(len(self)))[::-1]
        self._repair(np.array(list(dict.fromkeys(order)), np.int64), len(self), thorough=False)

    def propagate(self) -> None:
        """Values of all nodes, from nothing: h = r + gamma P h, the discounted chance of a good end, or the
        best way."""
        config, graph = self.config, self.edges.snapshot()
        own = self.own_worth(slice(None))
        if config.propagation == "max_product":
            unit = replace(graph, weights=np.ones_like(graph.weights))
            self.values[:] = max_product(unit, own, config.gamma).values
            return
        moves = transition_probabilities(graph, config.unseen, self.nodes.away)
        self.values[:] = first_hit(moves, own, config.gamma, tol=_TOLERANCE).values
        self.nodes.residual[:] = 0.0

    def own_worth(self, nodes: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """(n,) what nodes are worth by themselves: the share of all that happened there that was a good end,
        or the share of the ends."""
        won = self.column("won")[nodes] + self.column("gone_worth")[nodes]
        mass = self.column("ended")[nodes] + self.column("gone")[nodes]
        if self.config.propagation == "first_hit":
            mass = self.edges.links().out_weight[nodes] + mass + self.config.unseen
        return np.divide(won, mass, out=np.zeros(len(won)), where=mass > 0.0)

    def _repair(self, touched: NDArray[np.int64], start: int, thorough: bool = True) -> None:
        """`propagate` after a change of the touched nodes; those from `start` on are new.

        Credit runs backwards from what changed, largest change first, and stops where it changes nothing
        (Moore & Atkeson 1993, "Prioritized sweeping"). Both leave residuals of at most 1e-6, so that the
        values of one and the other differ by at most 2e-6 / (1 - gamma).
        """
        config = self.config
        self.values[start:] = 0.0
        endless = config.gamma == 1.0 and config.unseen == 0.0  # only a sweep from zero finds the smallest
        if endless or (thorough and _MANY * len(touched) > len(self)):
            self.propagate()
            return
        links, own = self.edges.links(), np.empty(len(self))
        own[touched] = self.own_worth(touched)  # of the others none is read
        if config.propagation == "max_product":
            done = raise_values(self.values, links, touched, own, config.gamma, unit=True) is not None
        else:
            updates = sweep_values(
                self.values,
                self.nodes.residual,
                links,
                touched,
                own,
                config.gamma,
                kappa0=config.unseen,
                out_extra=self.nodes.away,
                tol=_TOLERANCE,
                max_updates=len(self),
            )
            done = updates < len(self)
        if not done:
            self.propagate()

    def landmark_weights(self, path: Path) -> NDArray[np.float64]:
        """(L,) what each step of a path is worth, summing to one: lift of success given the landmark.

        lift = (successes + base - 1) / episodes - base over episodes like it, the path's own left out; base
        is the success rate of the goal. Only the first of equal landmarks has weight.
        """
        nodes = np.array(path.nodes)
        base = self.goals.reached[path.goal] / max(self.goals.tried[path.goal], 1.0)
        rows = self._keys_of(nodes)
        rows[:, : self.z_dim] = 0.0
        near = self.neighbours(rows)
        seen = (near.kernel * self.column("episodes")[near.nodes]).sum(axis=1)
        won = (near.kernel * self.column("successes")[near.nodes]).sum(axis=1)
        rate = (np.maximum(won - 1.0, 0.0) + base) / (np.maximum(seen - 1.0, 0.0) + 1.0)
        weights = np.maximum(rate - base, 0.0) + 0.01
        phi = self.step_embeddings(nodes)
        weights[(np.tril(phi @ phi.T, -1) > 0.99).any(axis=1)] = 0.0
        return weights / weights.sum()

    def end_value(self, path: Path) -> float:
        """h where a path ends, by all that ended near there for its goal, in [0, 1]."""
        rows = self._keys_of(np.array(path.nodes[-1:]))
        rows[:, : self.z_dim] = 0.0
        return float(self.read(self.neighbours(rows))[0])

    def settle(self, near: Neighbours, rounds: int = 3) -> int:
        """The node on which iterative retrieval comes to rest, for one query."""
        for _ in range(rounds):
            weight = near.kernel[0] / near.kernel[0].sum()
            query = (weight[:, None] * self._keys_of(near.nodes[0])).sum(axis=0, keepdims=True)
            near = self.neighbours((query / np.linalg.norm(query)).astype(np.float32))
        return int(near.nodes[0, 0])

    def visits_near(self, queries: Floats) -> NDArray[np.float64]:
        """(n,) visits of the nodes that a query falls in: those within the merge threshold of it."""
        near = self.neighbours(queries)
        if not len(self):
            return np.zeros(len(queries))
        same = near.kernel >= np.exp((self._same - 1.0) * self._rate)
        return np.where(same, self.column("visits")[near.nodes], 0.0).sum(axis=1)

    def state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Arrays and documents that `from_state` takes, beside the index."""
        edges = self.edges.edges()
        arrays: dict[str, NDArray] = {
            "stats": np.stack([self.column(name) for name in LEDGER], axis=1),
            "rested": self.rested,
            "values": self.values.copy(),
            "residual": self.nodes.residual.copy(),
            "goal_of": self.goal_of.astype(np.int64),
            "edge_tails": edges.tails,
            "edge_heads": edges.heads,
            "edge_weights": edges.amounts,
            **self.goals.arrays(self.dim),
            **self._paths.arrays(),
            "episodes": np.array([self.episodes]),
        }
        return arrays, {"texts": list(self.texts), "goals": list(self.goals.texts)}

    @classmethod
    def from_state(
        cls,
        dim: int,
        z_dim: int,
        config: FitConfig,
        arrays: Mapping[str, NDArray],
        documents: Mapping[str, Any],
        index: bytes,
        device: str = "auto",
    ) -> ValueGraph:
        """The inverse of `state`."""
        graph = cls(dim, z_dim, config, index_from_bytes(index, device=device))
        # Older folders lack the last two columns, and those before them the residual.
        ledger = dict(zip(LEDGER, arrays["stats"].T, strict=False))
        residual = arrays.get("residual")
        graph.nodes = NodeTable(documents["texts"], arrays["goal_of"], arrays["values"], residual, ledger)
        graph.rested = arrays.get("rested", np.zeros(0, np.float32))
        graph.edges = EdgeTable.from_edges(
            arrays["edge_tails"], arrays["edge_heads"], arrays["edge_weights"], len(graph)
        )
        graph.goals = Goals.from_arrays(documents["goals"], arrays)
        graph._paths = Paths.from_arrays(arrays)
        graph.episodes = int(arrays["episodes"][0])
        return graph
