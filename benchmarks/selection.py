"""What is left of a pool of rollouts when a proxy chooses among them: best-of-n and quantilizers, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def best_of(proxy: ArrayLike, n: int) -> Array:
    """(N,) chance of each rollout of a pool of N to be chosen as the best of n by proxy, ties by lot.

    Over all subsets of n out of the pool, without drawing any: with proxies sorted upwards the i-th (from 1)
    is the best of C(i - 1, n - 1) / C(N, n) of them. `best_of(proxy, n) @ gold` is then an unbiased estimate
    of the gold of best-of-n from the policy that made the pool. Raises ValueError unless 1 <= n <= N. Nakano
    et al. 2021, "WebGPT", https://arxiv.org/abs/2112.09332

    >>> best_of([0.1, 0.9, 0.5], 2).round(3).tolist()
    [0.0, 0.667, 0.333]
    """
    values = np.asarray(proxy, np.float64)
    count = len(values)
    if not 1 <= n <= count:
        raise ValueError(f"cannot take the best of {n} out of {count}")
    # From the last term, n / N, downwards: C(i - 2, n - 1) / C(i - 1, n - 1) = (i - n) / (i - 1).
    i = np.arange(count, 1, -1)
    ratios = np.maximum(i - n, 0) / (i - 1)
    chance = n / count * np.concatenate([[1.0], np.cumprod(ratios)])[::-1]
    return _shared(values, chance)


def top_quantile(proxy: ArrayLike, share: float) -> Array:
    """(N,) chance of each rollout in a uniform draw from the best `share` of the pool by proxy, ties by lot.

    Taylor 2016, "Quantilizers: A Safer Alternative to Maximizers for Limited Optimization".

    >>> top_quantile([0.1, 0.9, 0.5, 0.5], 0.5).tolist()
    [0.0, 0.5, 0.25, 0.25]
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be in (0, 1], not {share}")
    values = np.asarray(proxy, np.float64)
    kept = max(1, round(share * len(values)))
    return _shared(values, np.where(np.arange(len(values)) >= len(values) - kept, 1.0 / kept, 0.0))


def _shared(values: Array, chance: Array) -> Array:
    """Chances by ascending rank, back in the order of the values; equal values share theirs."""
    same = np.unique(values, return_inverse=True)[1]
    by_rank = np.sort(same)
    return (np.bincount(by_rank, chance) / np.bincount(by_rank))[same]
