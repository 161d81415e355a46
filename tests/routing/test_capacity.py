"""Seats per expert."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.routing.capacity import capacity_per_expert


@given(st.integers(1, 400), st.integers(1, 5000), st.integers(1, 8), st.integers(1, 256))
def test_capacity_is_the_formula_in_exact_arithmetic(hundredths, tokens, k, experts):
    exact = math.ceil(Fraction(hundredths, 100) * tokens * k / experts)
    assert capacity_per_expert(hundredths / 100, tokens, k, experts) == min(exact, tokens)


@pytest.mark.parametrize(
    ("factor", "tokens", "k", "experts", "capacity"),
    [
        (1.25, 1000, 2, 16, 157),
        (1.1, 10, 1, 1, 10),
        (1.1, 100, 1, 10, 11),
        (1.0, 7, 1, 4, 2),
        (100.0, 7, 1, 4, 7),
        (None, 7, 2, 4, 7),
        (0.01, 7, 1, 4, 1),
    ],
)
def test_capacity(factor, tokens, k, experts, capacity):
    assert capacity_per_expert(factor, tokens, k, experts) == capacity


def test_a_factor_without_a_seat_is_refused():
    with pytest.raises(ConfigError, match=r"^capacity_factor is 1e-09; accepted: a factor that gives each"):
        capacity_per_expert(1e-9, 7, 1, 4)
