"""Whether a rollout goes from memory to memory as episodes went, or against the way they went."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.edges import EdgeTable
from valuegraph.memories import Neighbours

__all__ = ["Transitions", "transitions"]

Array = NDArray[np.float64]

_PRIOR = 0.1  # of a transition, half of it each way, that counts before anything is known


class Transitions(NamedTuple):
    """What Hebbian edges say of how a rollout goes on from step to step, (T,) each, in [0, 1]."""

    order: Array
    """Share of what is known so far that goes the way it was seen; 1/2 where nothing is known."""
    against: Array
    """How surely a transition so far goes against one that was seen only the other way round."""
    reached: Array
    """How surely transitions that were seen lead here from a beginning, and the step before was seen to lead
    here; 0 for a step that does not count."""


def transitions(edges: EdgeTable, near: Neighbours, counted: NDArray[np.bool_], begun: Array) -> Transitions:
    """Edges have a direction, as associations have that depend on what came first (Bi & Poo 1998).

    With f_t how near steps t - 1 and t are to an edge, and b_t how near to one that leads back,

      order_t = (sum_s f_s + p / 2) / (sum_s f_s + sum_s b_s + p),  against_t = max_s (b_s - f_s)^+,
      reached_t = min(r_t, f_t),  s <= t,  p = .1,

    over the steps that count. See `EdgeTable.followed` for f and b, `EdgeTable.reached` for r.

    Args:
      near: (T, k) memories near each step.
      counted: (T,) which steps are evidence.
      begun: (T,) in [0, 1], how surely a step is where something begins.
    """
    at = np.flatnonzero(counted)
    visits = near.nodes[at], near.kernel[at]
    forward, backward, reached = np.zeros((3, len(counted)))
    forward[at], backward[at] = edges.followed(*visits)
    reached[at] = edges.reached(*visits, begun[at])
    along, back = np.cumsum(forward), np.cumsum(backward)
    return Transitions(
        order=(along + 0.5 * _PRIOR) / (along + back + _PRIOR),
        against=np.maximum.accumulate(np.maximum(backward - forward, 0.0)),
        reached=np.minimum(reached, forward),
    )
