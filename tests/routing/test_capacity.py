"""Seats: how many an expert has, and who gets them."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.routing.capacity import capacity_per_expert, seats_by_position, seats_by_score
from tests.routing.problems import SEEDS
from tests.routing.routers import E, G, S


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


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "factor", "expected"),
    [(1000, 2, 16, 1.25, 78), (16, 1, 16, 1.25, 4), (1024, 1, 8, 2.0, 256), (3, 1, 1, 1.0, 3), (64, 1, 2, 4.0, 64)],
)
def test_capacity_of_mesh_tensorflow(tokens, k, experts, factor, expected):
    assert capacity_per_expert(factor, tokens, k, experts, "mesh_tensorflow") == expected


@given(SEEDS, st.integers(1, 3))
def test_seats_by_score_are_those_of_a_sort(seed, k):
    rng = np.random.default_rng(seed)
    expert = np.stack([[rng.permutation(E)[:k] for _ in range(S)] for _ in range(G)]).astype(np.int32)
    requested, score = rng.random((G, S, k)) < 0.7, rng.integers(0, 4, (G, S, k)).astype(np.float32)
    seats = np.asarray(seats_by_score(*map(jnp.asarray, (expert, requested, score)), E))
    for g in range(G):
        taken = np.zeros(E, int)
        for choice in range(k):
            for s in sorted(range(S), key=lambda s: -score[g, s, choice]):
                if requested[g, s, choice]:
                    assert seats[g, s, choice] == taken[expert[g, s, choice]]
                    taken[expert[g, s, choice]] += 1


@given(st.lists(st.tuples(st.integers(0, E - 1), st.booleans()), min_size=12, max_size=12))
def test_seats_by_position_equals_a_count(asks):
    expert, requested = (np.asarray(column).reshape(2, 6) for column in zip(*asks, strict=True))
    seats = np.asarray(seats_by_position(jnp.asarray(expert), jnp.asarray(requested), E))
    for g, a in np.ndindex(2, 6):
        assert seats[g, a] == sum(requested[g, b] and expert[g, b] == expert[g, a] for b in range(a))
