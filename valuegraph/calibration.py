"""The scale of similarities and of utilities, learned from the fit episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.context import Encoded
from valuegraph.utility import ramp

__all__ = [
    "BY_GAINS",
    "BY_MEMORY",
    "SATURATION",
    "Calibration",
    "calibrate",
    "exclusive",
    "memory_share",
    "saturation",
]

Array = NDArray[np.float64]

SATURATION = 0.9
"""Utility of a full success where nothing was held out to learn it from."""
BY_MEMORY, BY_GAINS = 0.85, 0.4
"""Shares of the memory in how far a rollout is on its way: where it leads, and where gains do."""
_FULL = 0.95  # utility of a full success, at most: a twentieth less than all there is is as good
_KEPT, _MOST = 0.95, 0.8  # share of g that most successes must keep, and how many are most
_STEADIER, _LONG = 0.01, 4  # correlation with time that is more, and steps that one can be told from
_LEAST_ERROR = 1e-3  # of a mean of such correlations
_FEWEST = 5  # held-out successes that anything can be learned from
_MOST_ECHO = 0.1  # margin of echoes where ends of successes allow it
_SAMPLED = 256  # tasks or episodes that decide the floor of support
_COMPARED = 4096  # and distinct steps of each of them


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the fit episodes say about the scale of similarities; no outcome of a rollout is ever read."""

    support_floor: float = 0.0
    """Cosine to the nearest remembered step below which a step is no evidence."""
    echo: float = _MOST_ECHO
    """How much nearer to a remembered step than to the goal a step must be, or it restates the goal."""
    goal_mid: float = 0.5
    """Goal cosine of a final step half-way between failures and successes."""
    goal_spread: float = 0.1
    """Scale of the sigmoid around it."""
    saturation: float = SATURATION
    """Utility from which a rollout for a known goal is a full success."""
    exclusive: bool = True
    """Whether a step that is nearer to another memory is no landmark."""
    memory_share: float = 0.7
    """Of the memory in how far a rollout is on its way to a known goal; the rest are gains."""

    @property
    def steady(self) -> float:
        """How far a fall of what memory and value head say is something undone, in [0, 1]: not at all where
        the memory's account of successes is the less steady one, for there it falls by chance."""
        return float(ramp(self.memory_share, BY_GAINS, BY_MEMORY))

    def goal_match(self, cosine: NDArray) -> Array:
        """tau in (0, 1]: goal cosine on the scale of the fit episodes."""
        scaled = (np.asarray(cosine, np.float64) - self.goal_mid) / self.goal_spread
        return np.minimum(1.0 / (1.0 + np.exp(-np.clip(scaled, -30.0, 30.0))) / 0.9, 1.0)


def calibrate(encoded: Encoded, outcomes: Array, tasks: NDArray) -> Calibration:
    """Scales of similarities from the fit episodes.

    The floor of support is the 1 % quantile of a step's cosine to the steps of *other* tasks (of other
    episodes, where there is one task). The margin of echoes is half of what 98 % of the ends of successes
    would keep, were their task new: the end of a task often says what its goal says.
    """
    distinct, where = np.unique(encoded.steps, axis=0, return_inverse=True)
    several = len(np.unique(tasks)) > 1
    owner = np.asarray(tasks)[encoded.episode_of] if several else encoded.episode_of
    groups = np.unique(owner)
    cosine = np.sum(encoded.steps * encoded.goals[encoded.episode_of], axis=1)
    ends = encoded.starts[1:][outcomes > 0.5] - 1  # an unknown outcome (NaN) is neither
    low, margins = [], []
    for task in groups[:: -(-len(groups) // _SAMPLED)]:
        own = np.unique(where[owner == task])
        own = own[:: -(-len(own) // _COMPARED)]
        others = np.unique(where[owner != task])
        if len(others):
            low.append((distinct[own] @ distinct[others].T).max(axis=1))
            own_ends = ends[owner[ends] == task][:_COMPARED]
            margins.append((encoded.steps[own_ends] @ distinct[others].T).max(axis=1) - cosine[own_ends])
    # At most .9: where all say the same, the quantile is one, and rounding would decide what counts.
    floor = min(float(np.quantile(np.concatenate(low), 0.01)), 0.9) if low else 0.0
    last = cosine[encoded.starts[1:] - 1]
    won, lost = last[outcomes > 0.5], last[outcomes <= 0.5]
    calibration = Calibration(support_floor=floor, echo=_echo_margin(margins))
    if np.isnan(outcomes).all():
        low_end, high_end = np.quantile(last, [0.1, 0.9])
        spread = max(float(high_end - low_end), 0.05) / 4.0
        calibration = replace(calibration, goal_mid=float(low_end + high_end) / 2.0, goal_spread=spread)
    elif len(won) and len(lost):
        spread = max(float(won.mean() - lost.mean()), 0.05) / 4.0
        calibration = replace(calibration, goal_mid=float(won.mean() + lost.mean()) / 2.0, goal_spread=spread)
    return calibration


def _echo_margin(margins: list[Array]) -> float:
    """Half of what 98 % of the ends of successes are nearer to steps of other tasks than to their goal."""
    if sum(map(len, margins)) < _FEWEST:
        return _MOST_ECHO
    return float(np.clip(0.5 * np.quantile(np.concatenate(margins), 0.02), 0.0, _MOST_ECHO))


def saturation(totals: Array, succeeded: NDArray[np.bool_], penultimate: Array) -> float:
    """The utility from which a rollout is a full success, from held-out episodes scored without saturation.

    As low as lets most successes reach it, but above failures and successes without their last step.
    """
    won = totals[succeeded]
    short = np.concatenate([totals[~succeeded], penultimate])
    if len(won) < _FEWEST:
        return SATURATION
    ceiling = float(np.quantile(short, 0.95)) if len(short) else 0.0
    return float(np.clip(max(np.quantile(won, 0.2), ceiling), 0.3, _FULL))


def exclusive(alone: ArrayLike, all_alike: ArrayLike) -> bool:
    """Whether a step that is nearer to another memory may be taken for something else.

    It may where things have names: another key opens another door. Where states are told as inventories
    hardly two are alike, and a success would not be known by its own landmarks.

    Args:
      alone: (S,) g of held-out successes where a landmark must be the memory that a step is nearest to.
      all_alike: (S,) the same where likeness is enough.

    >>> exclusive([0.9, 0.9, 0.9, 0.9, 0.2], [0.9] * 5), exclusive([0.9, 0.9, 0.2, 0.3, 0.2], [0.9] * 5)
    (True, False)
    """
    strict, loose = np.asarray(alone, np.float64), np.asarray(all_alike, np.float64)
    return len(strict) < _FEWEST or bool(np.mean(strict >= _KEPT * loose) >= _MOST)


def memory_share(by_memory: Sequence[Array], by_gains: Sequence[Array]) -> float:
    """The share of the memory in how far a rollout is on its way to a known goal.

    Progress takes time, so the better account of it rises more steadily along held-out successes. That is the
    memory's, unless with gains in the lead the correlation of U_t with t is higher, by .01 on average:

      share = .85 - .45 Phi((mean(d) - .01) / se(d)),  d_i = corr(t, U_t by gains) - corr(t, U_t by memory),

    so where few successes were held out, or wrong ones, neither leads.

    Args:
      by_memory: U_t of each held-out success, (T_i,), where the memory leads.
      by_gains: the same where gains do.

    >>> steady, late = np.linspace(0, 1, 9), np.eye(9)[-1]
    >>> [round(memory_share(*pair), 2) for pair in ([[steady] * 5, [late] * 5], [[late] * 5, [steady] * 5])]
    [0.85, 0.4]
    """
    both = [
        steadiness(gains) - steadiness(memory)
        for memory, gains in zip(by_memory, by_gains, strict=True)
        if len(memory) >= _LONG
    ]
    if len(both) < _FEWEST:
        return Calibration().memory_share
    error = max(float(np.std(both, ddof=1)) / len(both) ** 0.5, _LEAST_ERROR)
    return BY_MEMORY + (BY_GAINS - BY_MEMORY) * NormalDist().cdf((float(np.mean(both)) - _STEADIER) / error)


def steadiness(potential: Array) -> float:
    """Correlation of U_t with t; zero where U never changes.

    >>> steadiness(np.array([0.0, 0.2, 0.4])), steadiness(np.ones(3))
    (1.0, 0.0)
    """
    if np.ptp(potential) == 0.0:
        return 0.0
    return float(np.corrcoef(np.arange(len(potential)), potential)[0, 1])
