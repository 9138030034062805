"""The mathematics of a utility: what it is made of, how it is held, and how far the memory is trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "alive",
    "carried",
    "combine",
    "confidence",
    "gathered",
    "geometric_blend",
    "hold",
    "kept",
    "ramp",
]

Array = NDArray[np.float64]

FLOOR = 1e-4
"""A soft AND of logarithms: what is missing costs dearly, but stays finite."""
FULL = 0.9
"""u from which on it is as good as it gets."""
KNOWN = 0.97
"""Cosine of goals from which on they are one and the same."""
_HOPELESS, _HOPEFUL = 0.2, 0.5  # learned value, from that of what may be a dead end to that of what is none


def hold(potential: Array, counted: NDArray[np.bool_], first: NDArray[np.int64] | None = None) -> Array:
    """U_t, where a step that does not count may lower the score but not raise it.

    With `first`, (T,) the number of the first step that says the same, one that repeats another may win back
    what that one was worth: who returns has lost nothing.

    >>> hold(np.array([0.2, 0.6, 0.9, 0.5]), np.array([True, True, False, False]))
    array([0.2, 0.6, 0.6, 0.5])
    >>> hold(np.array([0.6, 0.2, 0.9]), np.array([True, True, False]), np.array([0, 1, 0]))
    array([0.6, 0.2, 0.6])
    """
    out = potential.copy()
    previous = 0.0
    for t, counts in enumerate(counted):
        if not counts:
            back = out[first[t]] if first is not None and first[t] < t else 0.0
            out[t] = min(out[t], max(previous, back))
        previous = out[t]
    return out


def ramp(x: Array | float, low: float, high: float) -> Array:
    """0 up to `low`, 1 from `high` on."""
    return np.clip((np.asarray(x) - low) / (high - low), 0.0, 1.0)


def confidence(likeness: float) -> float:
    """c in [0, 1]: does the memory know this goal?"""
    return 1.0 if likeness > KNOWN else float(1.0 / (1.0 + np.exp(-(likeness - 0.9) / 0.03)))


def carried(value: Array, support: Array, counted: NDArray[np.bool_]) -> tuple[Array, Array]:
    """What the memory has said by step t, (T,), and how firmly, (T,).

    Where it says nothing, what it said last stands: a step off the ways seldom undoes what was reached.

      S_t = s_t + (1 - s_t) S_(t-1),  h_t = (s_t h(t) + (1 - s_t) S_(t-1) h_(t-1)) / S_t,

    t - 1 being the last step before t that counts.

    >>> carried(np.array([0.4, 0.0, 0.8]), np.array([1.0, 0.0, 0.5]), np.full(3, True))
    (array([0.4, 0.4, 0.6]), array([1., 1., 1.]))
    """
    said, firmly = np.zeros(len(value)), np.zeros(len(value))
    last = firm = 0.0
    for t, s in enumerate(support.tolist()):
        kept = (1.0 - s) * firm
        firmly[t] = s + kept
        said[t] = (s * value[t] + kept * last) / firmly[t] if firmly[t] > 0.0 else 0.0
        if counted[t]:
            last, firm = said[t], firmly[t]
    return said, firmly


def kept(value: NDArray | None, terminal: Array, counted: NDArray[np.bool_]) -> Array:
    """How much of what was once promised still is, (T,): min(1, 2 v_t / max_s v_s) (u_t / max_s u_s)^2.

    Over s <= t that count. An alignment never falls; what was undone since, value head and memory must tell.

    >>> kept(np.array([0.2, 0.8, 0.4, 0.1]), np.array([0.2, 0.4, 0.4, 0.2]), np.full(4, True))
    array([1.    , 1.    , 1.    , 0.0625])
    """
    left = _of_best(terminal, counted) ** 2
    return left if value is None else left * np.minimum(2.0 * _of_best(value, counted), 1.0)


def _of_best(x: NDArray, counted: NDArray[np.bool_]) -> Array:
    """(T,) in (0, 1]: what is left of the most that there was at a step that counts."""
    now = np.maximum(np.asarray(x, np.float64), FLOOR)
    return np.minimum(now / np.maximum.accumulate(np.where(counted, now, FLOOR)), 1.0)


def alive(dead_end: Array, value: NDArray | None) -> Array:
    """(T,) in [0, 1]: where most episodes end badly is a dead end, whatever is done or said afterwards.

    Unless the learner, which reads what came before, says otherwise: tasks that share the words of their goal
    have dead ends of their own. `dead_end` is the share of episodes that end badly here.

    >>> alive(np.array([0.0, 1.0, 0.0]), np.array([0.5, 0.35, 0.9]))
    array([1. , 0.5, 0.5])
    """
    dead = np.clip(2.0 * dead_end - 1.0, 0.0, 1.0)
    if value is not None:
        dead = dead * (1.0 - ramp(value, _HOPELESS, _HOPEFUL))
    return 1.0 - np.maximum.accumulate(dead)


def gathered(gain: NDArray, counted: NDArray[np.bool_], first: NDArray[np.int64]) -> Array:
    """(T,) how far a rollout has come by what its steps gained: U_t = min(1, max(0, U_(t-1) + r_t)).

    U_(-1) = 0. A step that does not count may lower it, not raise it; one that repeats another (`first`,
    the number of the first step that says the same) may win back what was had: who returns has lost nothing.

    >>> first, counted = np.array([0, 1, 0, 3]), np.array([True, True, False, True])
    >>> gathered(np.array([0.625, -0.5, 0.75, 0.25]), counted, first)
    array([0.625, 0.125, 0.625, 0.875])
    """
    out = np.empty(len(gain))
    now = most = 0.0
    steps = zip(np.asarray(gain, np.float64).tolist(), counted.tolist(), first.tolist(), strict=True)
    for t, (gained, counts, earlier) in enumerate(steps):
        allowed = 1.0 if counts else most if earlier < t else now
        now = max(0.0, min(now + gained, allowed))
        most = max(most, now)
        out[t] = now
    return out


def geometric_blend(value: NDArray, remembered: Array, share: Array) -> Array:
    """u_t: the value head blended with the kernel read of h, which has that share; a geometric mean."""
    return np.exp((1.0 - share) * _log(value) + share * _log(remembered))


def combine(terminal: Array, instrumental: Array, weight: Array) -> Array:
    """(u / .9)^(1-w) g^w; u from .9 on is as good as it gets."""
    return np.exp((1.0 - weight) * _log(terminal / FULL) + weight * _log(instrumental))


def _log(x: NDArray) -> Array:
    return np.log(np.clip(np.asarray(x, np.float64), FLOOR, 1.0))
