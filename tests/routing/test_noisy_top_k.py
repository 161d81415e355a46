"""Noisy top-k gating against a transcription of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from moe_jax.routing.noisy_top_k import chance_in_top_k
from tests.comparison import assert_close
from tests.routing import references, routers
from tests.routing.problems import SEEDS
from tests.routing.routers import D, E, G, S, apply, make


@given(SEEDS, st.integers(1, 3))
def test_the_load_of_noisy_top_k_is_shazeer_s_equation(seed, k):
    rng = np.random.default_rng(seed)
    clean, noise = rng.normal(size=(1, S, E)), rng.normal(size=(1, S, E))
    scale = rng.random((1, S, E)) + 0.1
    noisy = clean + noise * scale
    expected = np.zeros((1, S, E))
    for s, i in np.ndindex(S, E):
        others = sorted(np.delete(noisy[0, s], i))[::-1]
        expected[0, s, i] = norm.cdf((clean[0, s, i] - others[k - 1]) / scale[0, s, i])
    actual = chance_in_top_k(*(jnp.asarray(x, jnp.float32) for x in (clean, noisy, scale)), k)
    assert_close(actual, expected)


def noisy_reference(tokens, params, k, noise):
    """Gates, importance and load losses of noisy top-k in float64."""
    x, valid = np.asarray(tokens.x, np.float64), np.asarray(tokens.valid)
    clean = x @ np.asarray(params["kernel"], np.float64)
    scale = np.log1p(np.exp(x @ np.asarray(params["noise_kernel"], np.float64)))
    noisy = clean + noise * scale
    gates, load = np.zeros(clean.shape), np.zeros(clean.shape)
    for g, s in np.ndindex(G, S):
        best = np.argsort(-noisy[g, s])[:k]
        # Of one expert the plain probability; the paper has two or more.
        gates[g, s, best] = references.softmax(noisy[g, s, best]) if k > 1 else references.softmax(noisy[g, s])[best]
        for i in range(E):
            others = sorted(np.delete(noisy[g, s], i))[::-1]
            load[g, s, i] = norm.cdf((clean[g, s, i] - others[k - 1]) / scale[g, s, i])

    def variation(amounts):
        total = amounts[valid].sum(axis=0)
        return total.var() / total.mean() ** 2

    return gates * valid[..., None], variation(gates), variation(load)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_noisy_top_k_is_shazeer_s(k):
    tokens, rng = routers.tokens(3), np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(D, E)), jnp.float32) for name in ("kernel", "noise_kernel")}
    router = make("noisy_top_k", E, k, training=True)
    noise = []
    drawn = jax.random.normal

    def draw(*arguments):
        noise.append(drawn(*arguments))
        return noise[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", draw)
        assignment, sown = apply(router, tokens, params)
    gates, importance, load = noisy_reference(tokens, params, k, np.asarray(noise[0], np.float64))
    assert_close(assignment.combine_weights(), gates)
    assert_close(sown["importance_loss"], importance)
    assert_close(sown["load_loss"], load)
    quiet, _ = apply(router.clone(training=False), tokens, params)
    gates, _, _ = noisy_reference(tokens, params, k, 0.0)
    assert_close(quiet.combine_weights(), gates)
