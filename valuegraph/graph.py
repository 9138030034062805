"""The value graph: memories that are at once a retrieval store and the nodes of a graph of what led to what.

A step is stored under the key [z, phi, goal] (see `memories`). Steps with nearly equal keys are one node.
Edges follow Hebb's rule, values flow backwards along them, and the successful episodes are kept as paths of
nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from valuegraph.config import FitConfig
from valuegraph.edges import EdgeTable, hebbian_events
from valuegraph.index import VectorIndex
from valuegraph.memories import Floats, Memories, Neighbours
from valuegraph.nodes import COUNTED
from valuegraph.paths import Goals, Path, Paths
from valuegraph.placing import Memory, Placing, Visit, groups, newest
from valuegraph.values import repair, solve

__all__ = ["Floats", "Memory", "Neighbours", "Path", "ValueGraph", "Visit"]

_NEARLY = 0.99
_WORTH = 0.1


class ValueGraph(Memories):
    """Memories, Hebbian edges between them, values by backward credit, remembered paths.

    One writer at a time, and no reader meanwhile: `RewardModel` sees to that.
    """

    def __init__(
        self, dim: int, z_dim: int = 0, config: FitConfig | None = None, index: VectorIndex | None = None
    ) -> None:
        super().__init__(dim, z_dim, config, index)
        self.edges = EdgeTable()
        self.goals, self.ways = Goals(), Paths()
        self.episodes = 0
        self.rested = np.zeros(0, np.float32)
        """(E',) weights of the edges when the graph was last consolidated."""

    @property
    def paths(self) -> list[Path]:
        """The remembered ways; their places in this list are their numbers."""
        return self.ways.rows

    @property
    def paths_to(self) -> Mapping[int, Sequence[int]]:
        """Numbers of the paths to each goal."""
        return self.ways.to

    def goal_similarity(self, goal: Floats) -> NDArray[np.float64]:
        """(G,) similarity of a goal to every remembered one; two absent goals are equal."""
        return self.goals.similarity(goal)

    def write(self, visits: Sequence[Visit]) -> None:
        """Store episodes, link their steps by Hebb's rule, and send credit backwards through the graph."""
        start, touched = len(self), []
        for group in groups(visits):
            touched += self._write(group)
        repair(self.nodes, self.edges, self.config, np.unique(np.concatenate(touched)), start)

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
            self.ways.remember(Path(goal, tuple(nodes.tolist()), visit.outcome), config.paths_per_goal)

    def _place(
        self, placed: Placing, visit: Visit, goal: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The node of each step. Stored is what is novel, or near a memory but worth something else."""
        keys, similarity, nearest = placed.next(len(visit.memories))
        nodes, predicted = np.empty(len(keys), np.int64), np.zeros(len(keys))
        known = nearest >= 0
        predicted[known] = self.values[nearest[known]]
        worth = (np.abs(visit.credit - predicted) > _WORTH) | (self.config.merge == 1.0)
        stored = (similarity < self.same) & ((similarity < _NEARLY) | worth)
        nodes[~stored] = nearest[~stored]
        fresh, place = newest(keys, np.flatnonzero(stored), self.same)
        nodes[stored] = len(self) + place
        if fresh:
            placed.add(keys[fresh])
            self.edges.grow(len(self) + len(fresh))
            self.nodes.extend((visit.memories[t].text for t in fresh), goal, predicted[fresh])
        return nodes, predicted

    def replay(self) -> None:
        """Send credit backwards: along the stored paths first, the most successful first and each from its
        end, then wherever values do not agree with what follows."""
        paths = sorted(self.paths, key=lambda path: -path.outcome * path.count)
        order = [node for path in paths for node in reversed(path.nodes)] + list(range(len(self)))[::-1]
        touched = np.array(list(dict.fromkeys(order)), np.int64)
        repair(self.nodes, self.edges, self.config, touched, len(self), thorough=False)

    def propagate(self) -> None:
        """Values of all nodes, from nothing."""
        solve(self.nodes, self.edges, self.config)

    def landmark_weights(self, path: Path, again: bool = False) -> NDArray[np.float64]:
        """(L,) what each step of a path is worth, summing to one: lift of success given the landmark.

        lift = (successes + base - 1) / episodes - base over episodes like it, the path's own left out; base
        is the success rate of the goal. Only the first of equal landmarks counts; the last of all `again`.
        """
        base = self.goals.reached[path.goal] / max(self.goals.tried[path.goal], 1.0)
        rows = self.keys_of(np.array(path.nodes))
        rows[:, : self.z_dim] = 0.0
        near = self.neighbours(rows)
        seen = (near.kernel * self.column("episodes")[near.nodes]).sum(axis=1)
        won = (near.kernel * self.column("successes")[near.nodes]).sum(axis=1)
        rate = (np.maximum(won - 1.0, 0.0) + base) / (np.maximum(seen - 1.0, 0.0) + 1.0)
        weights = np.maximum(rate - base, 0.0) + 0.01
        phi = self.step_part(rows)
        repeats = np.any(np.tril(phi @ phi.T, -1) > 0.99, axis=1)
        repeats[-1:] &= not again
        weights[repeats] = 0.0
        return weights / weights.sum()

    def ends(self, paths: Sequence[Path]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(P,) h where paths end, by all that ended near there for their goals, in [0, 1]; and (P,) how many
        episodes those were, at least the path's own."""
        rows = self.keys_of(np.array([path.nodes[-1] for path in paths]))
        rows[:, : self.z_dim] = 0.0
        near = self.neighbours(rows)
        ended = (near.kernel * self.column("ended")[near.nodes]).sum(axis=1)
        return self.read(near), np.maximum(ended, 1.0)
