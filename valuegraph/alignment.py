"""Ordered soft alignment of a rollout to a remembered way: how much of it was done, and in that order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Matched", "match_strength", "matched_landmarks", "ordered_alignment"]

Array = NDArray[np.float64]


def match_strength(similarity: ArrayLike, nearest: ArrayLike | None = None) -> Array:
    """Soft match of step t with landmark l from their cosines (..., T, L): clip((cos_tl - .85) / .12, 0, 1).

    With `nearest` (..., T), the cosine of each step to what it is nearest to, times
    clip(1 - (nearest_t - cos_tl) / .05, 0, 1): a step that is something else is not this landmark.

    >>> match_strength([[0.8, 0.91, 0.99]])
    array([[0. , 0.5, 1. ]])
    >>> match_strength([[0.8, 0.91, 0.99]], nearest=[0.99])
    array([[0., 0., 1.]])
    """
    cosine = np.asarray(similarity, np.float64)
    match = np.clip((cosine - 0.85) / 0.12, 0.0, 1.0)
    if nearest is not None:
        match *= np.clip(1.0 - (np.asarray(nearest, np.float64)[..., None] - cosine) / 0.05, 0.0, 1.0)
    return match


def ordered_alignment(
    match: ArrayLike, weights: ArrayLike, counted: ArrayLike, prerequisites: bool = True
) -> Array:
    """Best ordered soft alignment of every prefix of a rollout to each of several ways.

    With A[t, l] the best sum that uses steps before t and landmarks before l,

      A[t+1, l+1] = max(A[t, l+1], A[t+1, l], A[t, l] + w_l m_tl f(A[t, l] / W_l)),  f(x) = min(1, 2x),

    W_l being the weight of the landmarks before l: a landmark pays in full once half of what comes before it
    is in place, so a late step alone earns little. Each step and each landmark is used at most once, in
    order; hence repeating, padding and skipping earn nothing.

    Args:
      match: (P, T, L) in [0, 1], match of step t with landmark l of way p; zero beyond a way's end.
      weights: (P, L) at least 0, summing to one per way.
      counted: (T,) whether a step counts; one that does not matches nothing.
      prerequisites: False sets f = 1, for a goal whose order of things nobody knows yet.

    Returns:
      (P, T) in [0, 1], never falling along a rollout.

    >>> ordered_alignment(np.eye(3)[None], [[0.5, 0.25, 0.25]], [True, True, True])
    array([[0.5 , 0.75, 1.  ]])
    >>> ordered_alignment(np.eye(3)[None, ::-1], [[0.5, 0.25, 0.25]], [True, True, True])
    array([[0. , 0. , 0.5]])
    """
    m = np.ascontiguousarray(match, np.float64)
    w = np.ascontiguousarray(weights, np.float64)
    mask = np.ascontiguousarray(counted, np.bool_)
    if m.ndim != 3 or w.shape != (m.shape[0], m.shape[2]) or mask.shape != m.shape[1:2]:
        raise ValueError(f"match {m.shape}, weights {w.shape} and counted {mask.shape} do not fit together")
    from valuegraph.alignment_kernel import align

    return align(m, w, mask, prerequisites)


class Matched(NamedTuple):
    """A landmark and the step that met it."""

    landmark: int
    step: int
    gain: float
    """What the match added to the alignment."""


def matched_landmarks(match: ArrayLike, weights: ArrayLike, counted: ArrayLike) -> list[Matched]:
    """The matches behind the last value of `ordered_alignment`, for one way: match (T, L), weights (L,).

    >>> [(m.landmark, m.step) for m in matched_landmarks(np.eye(2), [0.5, 0.5], [True, True])]
    [(0, 0), (1, 1)]
    """
    m, w, mask = np.asarray(match, np.float64), np.asarray(weights, np.float64), np.asarray(counted, np.bool_)
    steps, landmarks = m.shape
    before = np.concatenate([[0.0], np.cumsum(w)])
    table = np.zeros((steps + 1, landmarks + 1))
    for t in range(steps):
        table[t + 1, 0] = 0.0
        for k in range(landmarks):
            best = max(table[t, k + 1], table[t + 1, k])
            if mask[t]:
                best = max(best, table[t, k] + _pay(w[k] * m[t, k], table[t, k], before[k]))
            table[t + 1, k + 1] = best
    found: list[Matched] = []
    t, k = steps, landmarks
    while t > 0 and k > 0:
        if table[t, k] == table[t - 1, k]:
            t -= 1
        elif table[t, k] == table[t, k - 1]:
            k -= 1
        else:
            found.append(Matched(k - 1, t - 1, float(table[t, k] - table[t - 1, k - 1])))
            t, k = t - 1, k - 1
    return found[::-1]


def _pay(amount: float, done: float, before: float) -> float:
    return amount if before <= 0.0 else amount * min(1.0, 2.0 * done / before)
