"""Assignments of token choice, whatever the router: seats, order, padding, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.routing.assignment import assign_choices
from tests.comparison import assert_close
from tests.routing.problems import problems
from tests.routing.routers import DECISIONS, E, G, S, decide


@pytest.mark.parametrize("router", DECISIONS)
@given(problems(), st.sampled_from([None, 0.5, 1.0, 1.25]), st.integers(1, E))
def test_weights_and_seats(router, problem, capacity_factor, k):
    """Weights are finite and not negative, no expert runs more tokens than it has seats, none runs an invalid one."""
    logits, valid = problem
    assignment = decide(router, logits, valid, capacity_factor, k)
    weights = np.asarray(assignment.combine_weights())
    assert np.isfinite(weights).all()
    assert weights.min() >= 0
    mask = np.asarray(assignment.dispatch_mask())
    assert mask.sum(axis=1).max() <= assignment.capacity
    assert not mask[~np.asarray(valid)].any()
    # No token twice at one expert, and no seat for two.
    assert mask.sum() == assignment.kept.sum()
    for g in range(G):
        kept = np.asarray(assignment.kept[g])
        places = list(zip(np.asarray(assignment.expert[g])[kept], np.asarray(assignment.seat[g])[kept], strict=True))
        assert len(set(places)) == len(places)
    if capacity_factor is None and router != "expert_choice":
        np.testing.assert_array_equal(assignment.kept, assignment.requested)


@pytest.mark.parametrize("router", ["switch", "gshard_all", "gshard_none"])
def test_capacity_binds(router):
    """With every token on one expert, exactly that expert's seats are filled by first choices, in every group."""
    logits = jnp.zeros((G, S, E)).at[..., 2].set(9.0).at[..., 1].set(5.0)
    assignment = decide(router, logits, jnp.ones((G, S), bool), 1.0)
    mask = np.asarray(assignment.dispatch_mask())
    assert assignment.capacity == {"switch": 3}.get(router, 6)
    assert (mask[:, :, 2].sum(axis=1) == assignment.capacity).all()
    assert (mask[:, : assignment.capacity, 2]).all()


def test_assignments_are_choice_major():
    expert = jnp.asarray([[[0, 1], [1, 2], [0, 2]]], jnp.int32)
    weight = jnp.asarray([[[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]]])
    requested = jnp.asarray([[[True, True], [True, False], [True, True]]])
    assignment = assign_choices(expert, weight, requested, 3, 1)
    np.testing.assert_array_equal(assignment.token[0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(assignment.expert[0], [0, 1, 0, 1, 2, 2])
    np.testing.assert_array_equal(assignment.kept[0], [True, True, False, False, False, True])
    assert_close(assignment.combine_weights()[0], [[0.6, 0, 0], [0, 0.7, 0], [0, 0, 0.1]])


@pytest.mark.parametrize("router", sorted(set(DECISIONS) - {"gshard_random", "uniform_random"}))
def test_a_padded_batch_decides_as_the_unpadded_one(router):
    """With the same seats. The draws of the two random routers depend on the shape of the batch."""
    logits = jax.random.normal(jax.random.key(0), (G, S, E))
    padded = jnp.concatenate([logits, 99.0 * jnp.ones((G, 5, E))], axis=1)
    _, decision = DECISIONS[router]
    expected = decision(logits, jnp.ones((G, S), bool), 3, 2).combine_weights()
    actual = decision(padded, jnp.broadcast_to(jnp.arange(S + 5) < S, (G, S + 5)), 3, 2).combine_weights()
    np.testing.assert_array_equal(actual[:, :S], expected)
    assert not actual[:, S:].any()


@pytest.mark.parametrize("router", ["switch", "gshard_all", "expert_choice"])
def test_the_weight_carries_a_gradient_to_the_router(router):
    logits = jax.random.normal(jax.random.key(0), (1, S, E))
    valid = jnp.ones((1, S), bool)
    gradient = jax.grad(lambda logits: (decide(router, logits, valid, None).combine_weights() ** 2).sum())(logits)
    assert (np.abs(np.asarray(gradient)).max(axis=-1) > 1e-3).all()
