"""The compiled loops of `alignment.ordered_alignment` and of `context.clause_progress`."""

# mypy: allow-untyped-defs

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def align(match, weights, counted, prerequisites):
    """(ways, steps) float64; shapes are checked by the caller."""
    ways, steps, landmarks = match.shape
    out = np.empty((ways, steps))
    for p in range(ways):
        done = np.zeros(landmarks + 1)
        for t in range(steps):
            if counted[t]:
                before = 0.0
                diagonal = 0.0  # done[k] as it was before this step
                for k in range(landmarks):
                    here = done[k + 1]
                    best = max(here, done[k])
                    amount = weights[p, k] * match[p, t, k]
                    if amount > 0.0:
                        if prerequisites and before > 0.0:
                            amount *= min(1.0, 2.0 * diagonal / before)
                        best = max(best, diagonal + amount)
                    before += weights[p, k]
                    diagonal = here
                    done[k + 1] = best
            out[p, t] = min(done[landmarks], 1.0)  # weights add up to one but for rounding
    return out


@njit(cache=True, nogil=True)
def follow(take, counted):
    """(steps,) how far each prefix has come along parts in their order, from what each step adds to each,
    (steps, parts). A step that does not count is seen at its own place, and forgotten after it."""
    steps, parts = take.shape
    out = np.empty(steps)
    done = np.zeros(parts + 1)
    moved = np.zeros(parts + 1)
    for t in range(steps):
        for k in range(parts):
            moved[k + 1] = max(moved[k], done[k + 1], done[k] + take[t, k])
        out[t] = moved[parts]
        if counted[t]:
            done[:] = moved
    return out
