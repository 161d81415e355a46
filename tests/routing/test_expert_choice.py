"""Expert choice against a transcription of its paper, a linear programme, and loops."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moe_jax.routing.expert_choice import capped_plan, expert_choice, expert_choice_seen
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.problems import CAPACITIES, SEEDS, problem, problems
from tests.routing.routers import E, G, S


# A skew of 20 would round the probabilities of an expert's candidates to ties in float32.
@given(problems(skews=(0.0, 2.0)), CAPACITIES)
def test_expert_choice_equals_its_pseudo_code(problem, capacity):
    expected = references.expert_choice(*map(np.asarray, problem), capacity)
    assert_close(expert_choice(*problem, capacity).combine_weights(), expected, 1e-6)


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([1, 2, 3]))
def test_the_capped_plan_solves_the_linear_programme(seed, most):
    """With little entropy and many rounds: scipy's optimum, each expert C tokens, each token at most `most` experts."""
    tokens, experts, capacity = 8, 4, 2 * most
    scores = np.random.default_rng(seed).random((1, tokens, experts)).astype(np.float32)
    plan = capped_plan(jnp.asarray(scores), jnp.ones((1, tokens), bool), capacity, most, 0.005, 3000)
    plan = np.exp(np.asarray(plan[0], np.float64))
    by_expert = np.kron(np.ones((1, tokens)), np.eye(experts))
    by_token = np.kron(np.eye(tokens), np.ones((1, experts)))
    best = linprog(
        -scores[0].reshape(-1),
        A_ub=by_token,
        b_ub=np.full(tokens, most),
        A_eq=by_expert,
        b_eq=np.full(experts, capacity),
        bounds=(0, 1),
    )
    assert_close(plan.sum(axis=0), np.full(experts, capacity), 1e-2)
    assert plan.sum(axis=1).max() <= most + 1e-2
    assert abs((plan * scores[0]).sum() + best.fun) < 0.02


@pytest.mark.parametrize(("entropy", "iterations", "left"), [(0.01, 100, 0.4), (0.001, 1000, 0.3)])
def test_capped_expert_choice_limits_the_experts_of_a_token(entropy, iterations, left):
    """At most `left` remains of the excess of tokens above the cap; without a cap some have it."""
    logits = jax.random.normal(jax.random.key(0), (8, 64, 8))
    valid = jnp.ones((8, 64), bool)

    def excess(most, *options):
        taken = expert_choice(logits, valid, 16, most, *options).dispatch_mask().sum(axis=-1)
        return int(jnp.maximum(taken - 2, 0).sum())

    free = excess(None)
    assert free > 80
    assert excess(2, entropy, iterations) <= left * free


@given(SEEDS, st.sampled_from([2, 4, 6]))
def test_expert_choice_among_the_seen_is_that_of_loops(seed, capacity):
    logits, valid = problem(seed)
    mask = np.asarray(expert_choice_seen(jnp.asarray(logits), jnp.asarray(valid), capacity).dispatch_mask())
    probabilities = references.softmax(logits.astype(np.float64))
    for g, e in np.ndindex(G, E):
        taken, seen = [], []
        for s in np.flatnonzero(valid[g]):
            score = probabilities[g, s, e]
            better = sum(other >= score for other in seen)
            seen.append(score)
            if better < math.floor(Fraction(capacity * len(seen), S) + Fraction(1, 2)) and len(taken) < capacity:
                taken.append(s)
        assert np.flatnonzero(mask[g, :, e]).tolist() == taken
