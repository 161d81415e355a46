"""Top-k routing; its weights are compared with transformers' in test_against_transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.comparison import assert_close
from tests.routing import references, routers
from tests.routing.routers import D, E, apply, make


@pytest.mark.parametrize("level", ["group", "sequence", "batch"])
def test_a_balance_loss_is_a_mean_over_its_level(level):
    """Four sequences of 6 in two groups of 12; the loss of each part is that of the part alone."""
    tokens = routers.tokens(5).replace(sequence_length=6)
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(D, E)), jnp.float32)
    router = make("top_k", E, 2, loss_level=level)
    _, sown = apply(router, tokens, {"kernel": kernel})
    parts = {"group": 2, "sequence": 4, "batch": 1}[level]
    probabilities = references.softmax(np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64))
    expert = np.argsort(-probabilities, axis=-1)[..., :2]
    by_part = (x.reshape(parts, -1, *x.shape[2:]) for x in (probabilities, expert, np.asarray(tokens.valid)))
    assert_close(sown["balance_loss"], references.balance(*by_part))
