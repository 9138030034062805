"""A value graph as arrays and documents, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.config import FitConfig
from valuegraph.edges import EdgeTable
from valuegraph.graph import ValueGraph
from valuegraph.index import index_from_bytes
from valuegraph.nodes import LEDGER, NodeTable
from valuegraph.paths import Goals, Paths

__all__ = ["graph_from_state", "graph_state"]


def graph_state(graph: ValueGraph) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Arrays and documents that `graph_from_state` takes, beside the index."""
    edges = graph.edges.edges()
    arrays: dict[str, NDArray] = {
        "stats": np.stack([graph.column(name) for name in LEDGER], axis=1),
        "rested": graph.rested,
        "values": graph.values.copy(),
        "residual": graph.nodes.residual.copy(),
        "goal_of": graph.goal_of.astype(np.int64),
        "edge_tails": edges.tails,
        "edge_heads": edges.heads,
        "edge_weights": edges.amounts,
        **graph.goals.arrays(graph.dim),
        **graph.ways.arrays(),
        "episodes": np.array([graph.episodes]),
    }
    return arrays, {"texts": list(graph.texts), "goals": list(graph.goals.texts)}


def graph_from_state(
    dim: int,
    z_dim: int,
    config: FitConfig,
    arrays: Mapping[str, NDArray],
    documents: Mapping[str, Any],
    index: bytes,
    device: str = "auto",
) -> ValueGraph:
    """The inverse of `graph_state`."""
    graph = ValueGraph(dim, z_dim, config, index_from_bytes(index, device=device))
    # Older folders have fewer columns, and no residual.
    ledger = dict(zip(LEDGER, arrays["stats"].T, strict=False))
    residual = arrays.get("residual")
    graph.nodes = NodeTable(documents["texts"], arrays["goal_of"], arrays["values"], residual, ledger)
    graph.rested = arrays.get("rested", np.zeros(0, np.float32))
    graph.edges = EdgeTable.from_edges(
        arrays["edge_tails"], arrays["edge_heads"], arrays["edge_weights"], len(graph)
    )
    graph.goals = Goals.from_arrays(documents["goals"], arrays)
    graph.ways = Paths.from_arrays(arrays)
    graph.episodes = int(arrays["episodes"][0])
    return graph
