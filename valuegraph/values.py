"""Values of the nodes of a graph: what each is worth by itself, and what follows for all that leads there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from valuegraph.config import FitConfig
from valuegraph.edges import EdgeTable
from valuegraph.nodes import NodeTable
from valuegraph.propagation import (
    first_hit,
    max_product,
    raise_values,
    sweep_values,
    transition_probabilities,
)

__all__ = ["own_worth", "repair", "solve"]

_TOLERANCE = 1e-6  # residual of the values: none is further than it / (1 - gamma) from the exact one
_MANY = 4  # a change of more than one node in so many calls for a sweep over all of them


def own_worth(
    nodes: NodeTable, edges: EdgeTable, config: FitConfig, rows: NDArray[np.int64] | slice
) -> NDArray[np.float64]:
    """(r,) what nodes are worth by themselves: the share of all that happened there that was a good end, or
    (best ways) the share of the ends."""
    won = nodes.column("won")[rows] + nodes.column("gone_worth")[rows]
    mass = nodes.column("ended")[rows] + nodes.column("gone")[rows]
    if config.propagation == "first_hit":
        mass = edges.links().out_weight[rows] + mass + config.unseen
    return np.divide(won, mass, out=np.zeros(len(won)), where=mass > 0.0)


def solve(nodes: NodeTable, edges: EdgeTable, config: FitConfig) -> None:
    """Set all values, from nothing: h = r + gamma P h, the discounted chance of a good end, or the best
    way."""
    graph, own = edges.snapshot(), own_worth(nodes, edges, config, slice(None))
    if config.propagation == "max_product":
        unit = replace(graph, weights=np.ones_like(graph.weights))
        nodes.values[:] = max_product(unit, own, config.gamma).values
        return
    moves = transition_probabilities(graph, config.unseen, nodes.away)
    nodes.values[:] = first_hit(moves, own, config.gamma, tol=_TOLERANCE).values
    nodes.residual[:] = 0.0


def repair(
    nodes: NodeTable,
    edges: EdgeTable,
    config: FitConfig,
    touched: NDArray[np.int64],
    start: int,
    thorough: bool = True,
) -> None:
    """`solve` after a change of the touched nodes; those from `start` on are new.

    Credit runs backwards from what changed, largest change first, and stops where it changes nothing
    (Moore & Atkeson 1993, "Prioritized sweeping"). Both leave residuals of at most 1e-6, so that the
    values of one and the other differ by at most 2e-6 / (1 - gamma).

    Args:
      touched: distinct nodes whose statistics or edges changed.
      start: number of nodes before the change.
      thorough: solve anew where a large part of the graph has changed.
    """
    nodes.values[start:] = 0.0
    endless = config.gamma == 1.0 and config.unseen == 0.0  # only a sweep from zero finds the smallest
    if endless or (thorough and _MANY * len(touched) > len(nodes)):
        solve(nodes, edges, config)
        return
    links, own = edges.links(), np.empty(len(nodes))
    own[touched] = own_worth(nodes, edges, config, touched)  # of the others none is read
    if config.propagation == "max_product":
        done = raise_values(nodes.values, links, touched, own, config.gamma, unit=True) is not None
    else:
        updates = sweep_values(
            nodes.values,
            nodes.residual,
            links,
            touched,
            own,
            config.gamma,
            kappa0=config.unseen,
            out_extra=nodes.away,
            tol=_TOLERANCE,
            max_updates=len(nodes),
        )
        done = updates < len(nodes)
    if not done:
        solve(nodes, edges, config)
