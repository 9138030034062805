"""Repairs of values after small changes of the graph: only what changes is touched.

What is repaired are the solutions of `propagation.max_product` and `propagation.first_hit`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.adjacency import LinkedEdges

__all__ = ["check_gamma", "no_weight", "raise_values", "sweep_values"]

Values = NDArray[np.float64]


def raise_values(
    values: Values,
    links: LinkedEdges,
    dirty: ArrayLike,
    source: Values,
    gamma: float,
    *,
    kappa0: float = 0.0,
    out_extra: Values | None = None,
    unit: bool = False,
) -> int | None:
    """Repair `max_product` values in place after edges or sources of some nodes changed.

    Touches only the nodes whose value rises, each once, largest first. Values that would have to fall are
    not repaired: other nodes may lean on them in a circle, so that calls for a full sweep.

    Args:
      values: (n,) the solution before the change; new nodes zero. Changed in place.
      links: the edges after the change, with w_ij / (sum_j w_ij + extra_i + kappa0) as the weight of each.
      dirty: nodes whose outgoing edges or source changed.
      source: (n,) as for `max_product`; only that of dirty nodes is read.
      gamma: discount in [0, 1].
      kappa0: as for `transition_probabilities`.
      out_extra: as for `transition_probabilities`.
      unit: every edge weighs one (gamma per step) instead.

    Returns:
      How many nodes were raised, or None, with nothing changed, where a value would have to fall.
    """
    from valuegraph.value_kernels import raise_max_product

    n, nodes = _check_repair(values, links, dirty, source, gamma)
    extra = no_weight(n) if out_extra is None else out_extra
    raised = raise_max_product(*links, extra, kappa0, unit, source, gamma, nodes, values)
    return None if raised < 0 else int(raised)


def sweep_values(
    values: Values,
    residual: Values,
    links: LinkedEdges,
    dirty: ArrayLike,
    reward: Values,
    gamma: float,
    *,
    kappa0: float = 0.0,
    out_extra: Values | None = None,
    tol: float = 1e-6,
    max_updates: int = 1_000_000,
) -> int:
    """Repair `first_hit` values in place after edges or rewards of some nodes changed, upwards or downwards.

    Prioritized sweeping: always the node with the largest residual next (Moore & Atkeson 1993). What stays
    below the tolerance is kept in `residual` and counts when its node is touched again, so small errors do
    not pile up over many repairs.

    Args:
      values: (n,) the solution before the change; new nodes zero. Changed in place.
      residual: (n,) r + gamma P h - h as the last repair left it; zeros after `first_hit`. Changed in place.
      links: the edges after the change, with P_ij = w_ij / (sum_j w_ij + extra_i + kappa0).
      dirty: nodes whose outgoing edges, extra weight or reward changed.
      reward: (n,) as for `first_hit`, read at dirty nodes only; with P it leaves every row at most one.
      gamma: discount in [0, 1].
      kappa0: as for `transition_probabilities`.
      out_extra: as for `transition_probabilities`.
      tol: residual below which a node is left alone.
      max_updates: where to give up.

    Returns:
      How many updates were made; `max_updates` means that it gave up and a full sweep is due.
    """
    from valuegraph.value_kernels import sweep_first_hit

    n, nodes = _check_repair(values, links, dirty, reward, gamma)
    if residual.shape != values.shape:
        raise ValueError(f"residual has shape {residual.shape}, values {values.shape}")
    extra = no_weight(n) if out_extra is None else out_extra
    return int(
        sweep_first_hit(*links, extra, kappa0, reward, gamma, tol, max_updates, nodes, values, residual)
    )


def _check_repair(
    values: Values, links: LinkedEdges, dirty: ArrayLike, own: Values, gamma: float
) -> tuple[int, NDArray[np.int64]]:
    check_gamma(gamma)
    n = len(links.first_out)
    if values.shape != (n,) or own.shape != (n,):
        raise ValueError(
            f"{n} nodes are linked, but values and rewards have shapes {values.shape}, {own.shape}"
        )
    nodes = np.atleast_1d(np.asarray(dirty, dtype=np.int64))
    if len(nodes) and (nodes.min() < 0 or nodes.max() >= n):
        raise ValueError(f"dirty nodes must be in [0, {n})")
    return n, nodes


def check_gamma(gamma: float) -> None:
    """Raise ValueError unless a discount lies in [0, 1]."""
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")


@lru_cache(maxsize=2)
def no_weight(nodes: int) -> Values:
    """(n,) zeros: no weight leaves a node but along its edges.

    Shared and never written to: a repair is shorter than the clearing of a new array.
    """
    return np.zeros(nodes)
