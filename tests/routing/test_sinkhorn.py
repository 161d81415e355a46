"""Sinkhorn routing against Megatron-LM's loop."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given

from moe_jax.routing.base_layers import sinkhorn
from tests.comparison import assert_close
from tests.routing.problems import SEEDS, problem
from tests.routing.routers import E, G


@given(SEEDS)
def test_sinkhorn_reaches_equal_sums(seed):
    logits, valid = problem(seed)
    valid[:, 0] = True
    plan = np.exp(np.asarray(sinkhorn(jnp.asarray(logits), jnp.asarray(valid), 200)))
    for g in range(G):
        cost = np.exp(logits[g][valid[g]].astype(np.float64))
        rows, columns = np.ones(len(cost)), np.ones(E)
        for _ in range(200):  # Megatron-LM's loop.
            rows = 1 / len(cost) / (cost @ columns)
            columns = 1 / E / (rows @ cost)
        assert_close(plan[g][valid[g]], rows[:, None] * cost * columns, 1e-4)
        assert (plan[g][~valid[g]] == 0).all()
    assert_close(plan.sum(axis=1), np.full((G, E), 1 / E), 1e-4)
