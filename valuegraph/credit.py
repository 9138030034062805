"""Backward credit: pure recursions over one episode, from its end to its beginning.

Indices follow the episode: step t = 0 .. T-1, and the outcome arrives with the last step, undiscounted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["discounted_credit", "lambda_returns", "potential_shaping"]

Array = NDArray[np.float64]


def discounted_credit(outcome: float, length: int, gamma: float) -> Array:
    """Credit target y_t = gamma^(T-1-t) * outcome, for t in [0, T-1].

    The Monte Carlo return of an episode whose only reward is its outcome (Sutton & Barto 2018, eq. 3.8).

    Args:
      outcome: the outcome of the episode, in [0, 1].
      length: T, the number of steps, at least 0.
      gamma: discount in [0, 1].

    Returns:
      (T,) float64, non-decreasing in t, in [0, outcome].

    Raises:
      ValueError: the outcome, the length or gamma is out of range.

    >>> discounted_credit(1.0, 4, 0.5)
    array([0.125, 0.25 , 0.5  , 1.   ])
    """
    _check_unit("outcome", outcome)
    _check_unit("gamma", gamma)
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    return float(outcome) * np.power(float(gamma), np.arange(length - 1, -1, -1, dtype=np.float64))


def lambda_returns(
    values: ArrayLike, outcome: float | None, gamma: float, lam: float, rewards: ArrayLike | None = None
) -> Array:
    """Lambda-returns, bootstrapped from the values of the steps and computed backwards.

    With r_t = 0 where no rewards are given:

      G_(T-1) = r_(T-1) + outcome
      G_t     = r_t + gamma * ((1 - lam) * v_(t+1) + lam * G_(t+1)),  for t in [0, T-2].

    `lam=1` is the Monte Carlo return (`discounted_credit` without rewards), `lam=0` the one-step target
    r_t + gamma * v_(t+1). See "Reinforcement Learning: An Introduction", Sutton & Barto 2018, section 12.2.

    Args:
      values: (T,) value estimate v_t of each step.
      outcome: the outcome of the episode, in [0, 1]; None where it was cut before its outcome was known: no
        outcome is not an outcome of 0, so the last step then bootstraps, G_(T-1) = r_(T-1) + v_(T-1).
      gamma: discount in [0, 1].
      lam: mixing of bootstrapped and sampled returns, in [0, 1].
      rewards: (T,) reward of each step.

    Returns:
      (T,) float64.

    Raises:
      ValueError: shapes differ, a number is not finite, or outcome, gamma or lam is out of range.

    >>> lambda_returns([0.2, 0.4, 0.6], 1.0, gamma=0.5, lam=1.0)
    array([0.25, 0.5 , 1.  ])
    >>> lambda_returns([0.2, 0.4, 0.6], 1.0, gamma=0.5, lam=0.0)
    array([0.2, 0.3, 1. ])
    """
    v = _vector("values", values)
    r = np.zeros_like(v) if rewards is None else _vector("rewards", rewards)
    if r.shape != v.shape:
        raise ValueError(f"rewards has shape {r.shape}, values {v.shape}")
    if outcome is not None:
        _check_unit("outcome", outcome)
    _check_unit("gamma", gamma)
    _check_unit("lam", lam)
    returns = np.empty_like(v)
    if not len(v):
        return returns
    returns[-1] = following = r[-1] + (v[-1] if outcome is None else outcome)
    for t in range(len(v) - 2, -1, -1):
        returns[t] = following = r[t] + gamma * ((1.0 - lam) * v[t + 1] + lam * following)
    return returns


def potential_shaping(potentials: ArrayLike, gamma: float, terminated: bool) -> Array:
    """Potential-based shaping of the transitions between T visited states:

      F_t = gamma * Psi(s_(t+1)) - Psi(s_t),  for t in [0, T-2], with Psi(s_(T-1)) = 0 if terminated.

    It leaves every optimal policy optimal (Ng, Harada & Russell 1999) because it telescopes:
    sum_t gamma^t F_t = gamma^(T-1) * Psi(s_(T-1)) - Psi(s_0). The potential of a terminal state has to be
    zero, or the end of an episode pays the policy for where it stopped; where an episode was merely cut
    (truncated) the state goes on, and so does its potential.

    Args:
      potentials: (T,) potential of each visited state, the last one included; T is at least 1.
      gamma: discount in [0, 1], the one the policy is trained with.
      terminated: whether the last state is terminal. Truncation is not termination.

    Returns:
      (T-1,) float64.

    Raises:
      ValueError: no states, a potential that is not finite, or gamma out of range.

    >>> potential_shaping([0.25, 0.5, 1.0], gamma=0.5, terminated=False)
    array([0., 0.])
    >>> potential_shaping([0.25, 0.5, 1.0], gamma=0.5, terminated=True)
    array([ 0. , -0.5])
    """
    psi = _vector("potentials", potentials)
    _check_unit("gamma", gamma)
    if not len(psi):
        raise ValueError("potentials must hold at least the first state")
    after = psi[1:].copy()
    if terminated:
        after[-1:] = 0.0
    return gamma * after - psi[:-1]


def _vector(name: str, numbers: ArrayLike) -> Array:
    array = np.asarray(numbers, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    finite = np.isfinite(array)
    if not finite.all():
        at = int(np.argmin(finite))
        raise ValueError(f"{name} must be finite, got {array[at]} at index {at}")
    return array


def _check_unit(name: str, number: float) -> None:
    if not 0.0 <= number <= 1.0:  # also false for NaN
        raise ValueError(f"{name} must be in [0, 1], got {number}")
