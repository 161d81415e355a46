"""Quantile balancing against sorted lists."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.routing.quantile import quantile_bias
from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.problems import SEEDS
from tests.routing.routers import D, E, G, S, apply, make, state_after


@given(SEEDS, st.integers(1, 3))
def test_quantile_bias_is_that_of_sorted_lists(seed, k):
    rng = np.random.default_rng(seed)
    scores, bias = rng.random((G, S, E)).astype(np.float32), rng.random(E).astype(np.float32)
    valid = rng.random((G, S)) < 0.8
    actual = quantile_bias(*map(jnp.asarray, (scores, valid, bias)), k)
    rows = scores[valid]
    threshold = np.sort(rows - bias, axis=1)[:, -(k + 1)]
    surplus = np.sort(rows - threshold[:, None], axis=0)[::-1]
    assert_close(actual, surplus[len(rows) * k // E], 1e-6)


def test_quantile_balancing_evens_a_skewed_load():
    tokens = routers.tokens(0, share_valid=1.1)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(D, E)) * 2, jnp.float32)
    router = make("quantile", E, 1, rate=0.5)
    state, loads = {"bias": jnp.zeros(E)}, []
    for _ in range(20):
        _, sown = apply(router, tokens, {"kernel": kernel}, state)
        loads.append(float(sown["load_max_over_mean"]))
        state = state_after(router, state, sown)
    assert loads[-1] < 1.2 < loads[0]
