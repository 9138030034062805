"""Closed forms, reductions and the telescoping property of backward credit."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valuegraph import credit
from valuegraph.credit import discounted_credit, lambda_returns, potential_shaping

unit = st.floats(0.0, 1.0)
sequences = st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=30)


def discounted_sum(shaping: np.ndarray, gamma: float) -> float:
    return float(np.sum(np.power(gamma, np.arange(len(shaping))) * shaping))


def test_the_numbers_in_the_docstrings() -> None:
    result = doctest.testmod(credit)
    assert result.attempted >= 5
    assert result.failed == 0


@given(unit, st.integers(0, 40), unit)
def test_discounted_credit_is_the_closed_form(outcome: float, length: int, gamma: float) -> None:
    expected = [outcome * gamma ** (length - 1 - t) for t in range(length)]
    np.testing.assert_allclose(discounted_credit(outcome, length, gamma), expected, rtol=1e-12)


@given(sequences, unit, unit)
def test_lambda_one_is_monte_carlo(values: list[float], outcome: float, gamma: float) -> None:
    expected = discounted_credit(outcome, len(values), gamma)
    np.testing.assert_allclose(lambda_returns(values, outcome, gamma, 1.0), expected, rtol=1e-9, atol=1e-300)


@given(sequences, unit, unit)
def test_lambda_zero_is_one_step(values: list[float], outcome: float, gamma: float) -> None:
    expected = [gamma * v for v in values[1:]] + [outcome]
    np.testing.assert_allclose(lambda_returns(values, outcome, gamma, 0.0), expected, atol=1e-12)


@given(sequences, unit, unit, unit)
def test_lambda_returns_are_the_mixture_of_n_step_returns(
    values: list[float], outcome: float, gamma: float, lam: float
) -> None:
    """The forward view: G_t = (1-lam) sum_n lam^(n-1) G_t:n + lam^(N-1) G_t:N, with rewards."""
    T = len(values)
    rewards = np.linspace(-0.5, 0.5, T)
    expected = np.empty(T)
    for t in range(T):
        last = T - 1 - t  # the n-step return that reaches the outcome looks `last` steps ahead
        sampled = [sum(gamma**k * rewards[t + k] for k in range(n)) for n in range(last + 2)]
        n_step = [sampled[n] + gamma**n * values[t + n] for n in range(1, last + 1)]
        full = sampled[last + 1] + gamma**last * outcome
        mixture = sum((1 - lam) * lam ** (n - 1) * g for n, g in enumerate(n_step, start=1))
        expected[t] = mixture + lam**last * full
    np.testing.assert_allclose(lambda_returns(values, outcome, gamma, lam, rewards), expected, atol=1e-9)


def test_an_unknown_outcome_is_not_an_outcome_of_zero() -> None:
    np.testing.assert_allclose(lambda_returns([0.1, 0.8], None, 0.5, 1.0), [0.4, 0.8])
    np.testing.assert_allclose(lambda_returns([0.1, 0.8], 0.0, 0.5, 1.0), [0.0, 0.0])


def test_values_that_are_the_returns_are_a_fixed_point() -> None:
    """Correct values leave the lambda-return the same for every lambda; wrong values (the control) do not."""
    right = discounted_credit(0.7, 9, 0.9)
    for lam in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(lambda_returns(right, 0.7, 0.9, lam), right)
    wrong = right[::-1]
    assert np.abs(lambda_returns(wrong, 0.7, 0.9, 0.3) - right).max() > 0.1


@given(sequences, unit, st.booleans())
def test_shaping_telescopes(potentials: list[float], gamma: float, terminated: bool) -> None:
    shaping = potential_shaping(potentials, gamma, terminated)
    assert shaping.shape == (len(potentials) - 1,)
    end = 0.0 if terminated and len(potentials) > 1 else potentials[-1]
    expected = gamma ** (len(potentials) - 1) * end - potentials[0] if len(potentials) > 1 else 0.0
    assert discounted_sum(shaping, gamma) == pytest.approx(expected, abs=1e-9)


def test_two_ways_to_the_end_earn_the_same_shaping_and_a_plain_difference_does_not() -> None:
    """Psi(s') - Psi(s), the control, pays for the detour."""
    gamma, short, long = 0.9, [0.2, 0.6, 1.0], [0.2, 0.1, 0.9, 0.3, 0.6, 1.0]
    shaped = [discounted_sum(potential_shaping(path, gamma, True), gamma) for path in (short, long)]
    assert shaped[0] == pytest.approx(shaped[1], abs=1e-12) == pytest.approx(-0.2)
    naive = [discounted_sum(np.diff(path), gamma) for path in (short, long)]
    assert abs(naive[0] - naive[1]) > 0.05


def test_truncation_keeps_the_potential_and_termination_drops_it() -> None:
    kept, dropped = (potential_shaping([0.5, 0.8], 0.9, terminated)[-1] for terminated in (False, True))
    assert kept == pytest.approx(0.22)
    assert dropped == pytest.approx(-0.5)


def test_the_argument_is_not_changed() -> None:
    potentials = np.array([0.5, 0.8])
    potential_shaping(potentials, 0.9, True)
    assert potentials.tolist() == [0.5, 0.8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discounted_credit(1.5, 3, 0.9), "outcome must be in"),
        (lambda: discounted_credit(float("nan"), 3, 0.9), "outcome must be in"),
        (lambda: discounted_credit(1.0, -1, 0.9), "length must not be negative"),
        (lambda: discounted_credit(1.0, 3, 1.1), "gamma must be in"),
        (lambda: lambda_returns([0.1], 1.0, 0.9, -0.1), "lam must be in"),
        (lambda: lambda_returns([0.1, 0.2], 1.0, 0.9, 0.5, [1.0]), "rewards has shape"),
        (lambda: lambda_returns([[0.1]], 1.0, 0.9, 0.5), "one dimension"),
        (
            lambda: lambda_returns([0.1, float("nan")], 1.0, 0.9, 0.5),
            "values must be finite, got nan at index 1",
        ),
        (lambda: potential_shaping([], 0.9, True), "at least the first state"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
