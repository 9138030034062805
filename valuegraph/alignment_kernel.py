"""The compiled loop of `alignment.ordered_alignment`."""

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
