"""V-MoE's routing against a transcription of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests.comparison import assert_close
from tests.routing import references, routers
from tests.routing.routers import D, E, G, S, apply, make


@pytest.mark.parametrize("k", [1, 2])
def test_vmoe_is_its_paper_s(k):
    tokens = routers.tokens(4)
    kernel = np.random.default_rng(1).normal(size=(D, E))
    router = make("vmoe", E, k, training=True)
    noise = []
    drawn = jax.random.normal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda *a: noise.append(drawn(*a)) or noise[-1])
        assignment, sown = apply(router, tokens, {"kernel": jnp.asarray(kernel, jnp.float32)})
    valid = np.asarray(tokens.valid)
    clean = np.asarray(tokens.x, np.float64) @ kernel
    noisy = clean + np.asarray(noise[0]) / E
    gates, load = np.zeros(clean.shape), np.zeros(clean.shape)
    for g, s in np.ndindex(G, S):
        best = np.argsort(-noisy[g, s])[:k]
        gates[g, s, best] = references.softmax(noisy[g, s])[best]
        load[g, s] = 1 - norm.cdf((np.sort(noisy[g, s])[-k] - clean[g, s]) * E)
    assert_close(assignment.combine_weights(), gates * valid[..., None])
    for name, amounts in (("importance_loss", references.softmax(clean)), ("load_loss", load)):
        total = amounts[valid].sum(axis=0)
        assert_close(sown[name], total.var() / total.mean() ** 2, what=name)
