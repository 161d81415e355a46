"""Two-level routing against a transcription of its paper's appendix B."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests.comparison import assert_close
from tests.routing import references, routers
from tests.routing.routers import D, G, S, apply, make


@pytest.mark.parametrize("training", [False, True])
def test_hierarchical_routing_is_the_product_of_two(training):
    """Experts of each group by its own router on the tokens that were sent there; importance and load as in app. B.

    In training all noise drawn is 0, so that who is chosen is known, and the chances of being chosen are not trivial.
    """
    tokens = routers.tokens(2)
    router = make("hierarchical", 6, 2, training=training, groups=3, outer_k=2)
    rng = np.random.default_rng(0)
    params = {
        "outer": {name: jnp.asarray(rng.normal(size=(D, 3)), jnp.float32) for name in ("kernel", "noise_kernel")},
        "inner": {name: jnp.asarray(rng.normal(size=(3, D, 2)), jnp.float32) for name in ("kernel", "noise_kernel")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype))
        assignment, sown = apply(router, tokens, params)
    x, valid = np.asarray(tokens.x, np.float64), np.asarray(tokens.valid)
    outer, inner = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[level]) for level in params)
    expected, sent = np.zeros((G, S, 6)), np.zeros(3)
    outer_load, inner_load = np.zeros(3), np.zeros((3, 2))
    for g, s in np.argwhere(valid):
        clean = x[g, s] @ outer["kernel"]
        outer_load += chances(clean, x[g, s] @ outer["noise_kernel"], 2)
        best = np.argsort(-clean)[:2]
        for weight, i in zip(references.softmax(clean[best]), best, strict=True):
            within = x[g, s] @ inner["kernel"][i]
            expected[g, s, 2 * i + within.argmax()] = weight * references.softmax(within).max()
            inner_load[i] += chances(within, x[g, s] @ inner["noise_kernel"][i], 1)
            sent[i] += 1
    assert_close(assignment.combine_weights(), expected)
    importance = expected.sum(axis=(0, 1))
    assert_close(sown["importance_loss"], importance.var() / importance.mean() ** 2)
    asked = (expected > 0).sum(axis=(0, 1))
    assert_close(sown["load"], asked / asked.sum(), 1e-6)
    load = (outer_load[:, None] * inner_load / sent[:, None]).reshape(-1) if training else asked
    assert_close(sown["load_loss"], load.var() / load.mean() ** 2)


def chances(clean, before_softplus, k):
    """An expert is among the top k when its noise alone is drawn anew, the others having none."""
    others = [sorted(np.delete(clean, i))[::-1][k - 1] for i in range(len(clean))]
    return norm.cdf((clean - others) / np.log1p(np.exp(before_softplus)))
