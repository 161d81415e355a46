"""Random routing by counts of its draws."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.routing.uniform_random import uniform_random


def test_uniform_random_draws_every_set_of_different_experts_equally_often():
    assignment = uniform_random(jnp.ones((4, 1500), bool), 1500, 4, 2, jax.random.key(0))
    first, second = np.asarray(assignment.expert).reshape(4, 2, 1500).transpose(1, 0, 2).reshape(2, -1)
    pairs = np.bincount(np.minimum(first, second) * 4 + np.maximum(first, second), minlength=16).reshape(4, 4)
    assert (first != second).all()
    # Six pairs, 1000 of each expected, five standard deviations allowed.
    assert (np.abs(pairs[np.triu_indices(4, 1)] - 1000) < 5 * np.sqrt(1000 * 5 / 6)).all()
    assert pairs.sum() == 6000
    assert (assignment.weight == 0.5).all()
