"""Sleep: a value graph is tidied up while nothing new comes in.

Near-duplicates are merged, edges that nobody used since the last sleep fade, what is worth least is forgotten
down to a budget, and credit is replayed backwards along the stored paths. The scores stay close to what they
were: what a forgotten memory was worth stays with the memories that led to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from valuegraph.edges import EdgeTable
from valuegraph.graph import ValueGraph
from valuegraph.index import VectorIndex, make_index, promote
from valuegraph.nodes import LEDGER, NodeTable

__all__ = ["Consolidation", "consolidated"]

Nodes = NDArray[np.int64]

_BLOCK = 4096  # nodes looked up at once
_FADED = 1e-3  # weight below which an edge is forgotten


@dataclass(frozen=True, slots=True)
class Consolidation:
    """What a sleep did."""

    merged: int
    """Nodes that became one with their nearest neighbour."""
    pruned: int
    """Nodes forgotten."""
    nodes: int
    """Nodes left."""
    edges: int
    """Edges left."""
    replayed: int
    """Stored paths along which credit was sent backwards."""


def consolidated(
    graph: ValueGraph,
    budget: int | None = None,
    *,
    similarity: float = 0.99,
    worth: float = 0.1,
    decay: float = 0.1,
) -> tuple[ValueGraph, Consolidation]:
    """A consolidated copy of a graph, which is only read, and what became of it.

    Args:
      budget: how many nodes to keep at most, at least 1; None forgets nothing.
      similarity: two nodes of one goal merge where each is the other's nearest and at least this similar,
      worth: and where their values differ by no more than this, in [0, 1].
      decay: share of its weight that an edge unused since the last sleep loses, in [0, 1].

    Raises:
      ValueError: an argument out of range.
    """
    if budget is not None and (not isinstance(budget, int | np.integer) or budget < 1):
        raise ValueError(f"budget must be a whole number of at least 1, got {budget!r}")
    for name, number in (("similarity", similarity), ("worth", worth), ("decay", decay)):
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {number}")
    into = twins(graph, similarity, worth)
    alive = np.flatnonzero(into == np.arange(len(graph)))
    kept = alive if budget is None or budget >= len(alive) else _worthiest(graph, into, alive, budget)
    place = np.full(len(graph), -1)
    place[kept] = np.arange(len(kept))
    place = place[into]
    copy = _gathered(graph, kept, place, _index(graph, kept), decay)
    return copy, Consolidation(
        merged=len(graph) - len(alive),
        pruned=len(alive) - len(kept),
        nodes=len(copy),
        edges=len(copy.edges),
        replayed=len(copy.paths),
    )


def twins(graph: ValueGraph, similarity: float, worth: float) -> Nodes:
    """(n,) the node that each one becomes: itself, or an older one, where each is the other's nearest."""
    nodes = np.arange(len(graph))
    nearest, cosine = nodes.copy(), np.full(len(graph), -np.inf, np.float32)
    for start in range(0, len(graph) if len(graph) > 1 else 0, _BLOCK):
        block = nodes[start : start + _BLOCK]
        found = graph.index.search(graph.index.reconstruct(block), 2)
        other = (found.ids[:, 0] == block).astype(np.int64)  # mostly the first is the node itself
        nearest[block] = np.take_along_axis(found.ids, other[:, None], 1)[:, 0]
        cosine[block] = np.take_along_axis(found.similarity, other[:, None], 1)[:, 0]
    alike = (
        (nearest[nearest] == nodes)
        & (nearest < nodes)
        & (cosine >= similarity)
        & (graph.goal_of[nearest] == graph.goal_of)
        & (np.abs(graph.values[nearest] - graph.values) <= worth)
    )
    return np.where(alike, nearest, nodes)


def _worthiest(graph: ValueGraph, into: Nodes, alive: Nodes, budget: int) -> Nodes:
    """The nodes to keep: first those on stored paths, then by (h + share of bad ends) * log(1 + visits).

    Off the support of the memory a value reads as zero, so what is worth nothing is missed least.
    """
    visits, bad = np.zeros(len(graph)), np.zeros(len(graph))
    np.add.at(visits, into, graph.column("visits"))
    np.add.at(bad, into, graph.column("ended") - graph.column("won"))
    worth = (graph.values + bad / np.maximum(visits, 1.0)) * np.log1p(visits)
    for path in graph.paths:
        worth[into[np.array(path.nodes)]] += 1e6 * path.count * path.outcome
    return np.sort(alive[np.argsort(-worth[alive], kind="stable")[:budget]])


def _index(graph: ValueGraph, kept: Nodes) -> VectorIndex:
    """The keys of the nodes that stay, under their new numbers, in the tier that suits their number."""
    scanned = {"exact": "flat", "flat": "flat", "cagra": "cagra"}.get(graph.index.tier, "flat_fp16")
    index = make_index(graph.width, tier=scanned, device=graph.config.device)
    for start in range(0, len(kept), _BLOCK):
        block = kept[start : start + _BLOCK]
        index.add(graph.index.reconstruct(block), np.arange(start, start + len(block)))
    return promote(index)


def _gathered(graph: ValueGraph, kept: Nodes, place: Nodes, index: VectorIndex, decay: float) -> ValueGraph:
    """A copy with fewer nodes: kept[i] is its node i, and node j here is its node place[j], -1 if none.

    Edges unused since the last time weigh 1 - decay of what they did. Where a way led to what is not in
    the copy, it ends with what that was worth, so values stay as they are.
    """
    copy = ValueGraph(graph.dim, graph.z_dim, graph.config, index)
    copy.goals, copy.episodes = graph.goals, graph.episodes
    stays = place >= 0
    at, most = place[stays], len(kept)
    ledger = {name: np.bincount(at, graph.column(name)[stays], most).astype(np.float64) for name in LEDGER}
    edges, amounts = graph.edges.edges(), graph.edges.edges().amounts
    unused = np.zeros(len(amounts), np.bool_)
    unused[: len(graph.rested)] = amounts[: len(graph.rested)] == graph.rested
    amounts = np.where(unused, np.float32(1.0 - decay), np.float32(1.0)) * amounts
    tails, heads = place[edges.tails], place[edges.heads]
    held = (amounts > _FADED) & (tails >= 0)
    inside, cut = held & (heads >= 0), held & (heads < 0)
    copy.edges = EdgeTable.from_edges(tails[inside], heads[inside], amounts[inside], len(kept))
    copy.rested = copy.edges.edges().amounts
    worth = graph.config.gamma * graph.values[edges.heads[cut]]
    np.add.at(ledger["gone"], tails[cut], amounts[cut])
    np.add.at(ledger["gone_worth"], tails[cut], amounts[cut] * worth)
    texts = (graph.texts[i] for i in kept.tolist())
    copy.nodes = NodeTable(texts, graph.goal_of[kept], graph.values[kept], ledger=ledger)
    for path in graph.paths:
        nodes = place[np.array(path.nodes)]
        if (nodes >= 0).any():
            copy.ways.remember(replace(path, nodes=tuple(nodes[nodes >= 0].tolist())))
    copy.replay()
    return copy
