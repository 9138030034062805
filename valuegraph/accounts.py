"""The two accounts of a rollout: how far it is on its way, and what it is worth where it stops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.utility import combine, geometric_blend, hold, kept, ramp

__all__ = ["Told", "Utility", "closed", "underway"]

Array = NDArray[np.float64]

_SURELY = 0.8  # how surely it is the end of a way that is taken for sure
_DOUBTED, _THERE = 0.2, 0.4  # u at the end of a way, from one that means nothing to an arrival


class Account(NamedTuple):
    """How a utility weighs what it is made of; shares in [0, 1]."""

    memory: float
    """Of the memory in u, against the value head, where the goal is known."""
    way: float
    """Of g against u where the goal is known."""
    doubted: float
    """Of g against u where the goal is new."""


# On the way, how far a rollout has come is what counts, and landmarks say so even where the goal is new. In
# the end it must have been done in full, and as remembered successes do it.
RUNNING = Account(memory=0.9, way=0.7, doubted=0.3)
CLOSING = Account(memory=0.95, way=0.85, doubted=0.05)


class Told(NamedTuple):
    """What memory and learner say of each step of a rollout; (T,) each, in [0, 1]."""

    value: NDArray | None
    """Of the value head; None without a learner."""
    gains: Array | None
    """What steps have gained so far; None without a learner."""
    remembered: Array
    """The memory's last word on the value."""
    held: Array
    """How firmly that is said."""
    strict: Array
    """Alignment to ways of a known goal."""
    loose: Array
    """Alignment to ways of a new one."""
    alive: Array
    """One but for dead ends."""
    hint: Array
    """How near a new goal is by its words, where few episodes are known."""


class Utility(NamedTuple):
    """U, u and g after each step; (T,) each, in [0, 1]."""

    total: Array
    terminal: Array
    instrumental: Array


def utility(told: Told, account: Account, trust: Array) -> Utility:
    """The soft AND of u and g, for a goal that is known as surely as `trust` says, (T,) in [0, 1]."""
    share = account.memory * trust * told.held
    terminal = told.remembered if told.value is None else geometric_blend(told.value, told.remembered, share)
    instrumental = trust * told.strict + (1.0 - trust) * told.loose
    weight = account.way * trust + account.doubted * (1.0 - trust)
    total = combine(terminal, instrumental, weight) * told.hint ** (1.0 - trust)
    return Utility(total, terminal, instrumental)


def closed(
    told: Told,
    trust: Array,
    counted: NDArray[np.bool_],
    running: Array,
    full: Array,
    at_end: Array,
    steady: float,
) -> Utility:
    """What a rollout is worth, had it stopped after each step.

    Who has not arrived keeps of it what was not undone since, where the memory tells that steadily; where it
    does not, and the goal is known, it is worth no more than on its way.

    Args:
      running: (T,) how far it was on its way.
      full: (T,) what a success in full is worth, which then earns one.
      at_end: (T,) how surely a step is where successes end. Who is there, and well, has arrived: what else
        may be missing counts for no more.
      steady: in [0, 1], see `Calibration.steady`.
    """
    total, terminal, instrumental = utility(told, CLOSING, trust)
    worth = np.clip(total * kept(told.value, terminal, counted) ** steady / full, 0.0, 1.0)
    bound = trust * (1.0 - steady)
    worth = worth ** (1.0 - bound) * np.minimum(worth, running) ** bound
    missing = 1.0 - ramp(at_end, 0.0, _SURELY) * ramp(terminal, _DOUBTED, _THERE)
    return Utility(hold(worth**missing * told.alive, counted), terminal, instrumental)


def underway(
    told: Told, known: Array, share: float, counted: NDArray[np.bool_], first: NDArray[np.int64]
) -> Array:
    """(T,) in [0, 1] how far a rollout is on its way: where the goal is known, that share of U, held, and of
    what its steps gained the rest; what they gained alone where it is new; U alone without a learner."""
    way = hold(utility(told, RUNNING, known).total * told.alive, counted, first)
    if told.gains is None:
        return way
    gains = told.gains * told.hint ** (1.0 - known) * told.alive
    return gains + share * known * (way - gains)
