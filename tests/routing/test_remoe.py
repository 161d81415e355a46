"""ReMoE against its equations."""

import jax.numpy as jnp
import numpy as np

from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.routers import D, E, apply, make, state_after


def test_remoe_runs_positive_logits_and_steers_their_number():
    tokens, kernel = routers.tokens(1), jnp.asarray(np.random.default_rng(0).normal(size=(D, E)), jnp.float32)
    router = make("remoe", E, 1, loss_level="batch")
    assignment, sown = apply(router, tokens, {"kernel": kernel}, {"coefficient": jnp.float32(0.5)})
    valid = np.asarray(tokens.valid)
    logits = np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64)
    weights = np.maximum(logits, 0) * valid[..., None]
    assert_close(assignment.combine_weights(), weights)
    rows, running = weights[valid], logits[valid] > 0
    penalty = sum(E / 1 / len(rows) * running[:, e].sum() * rows[:, e].mean() for e in range(E))
    assert_close(sown["sparsity_loss"], 0.5 * penalty)
    assert_close(sown["active_share"], running.mean())
    assert running.mean() > 1 / E
    assert_close(state_after(router, {"coefficient": jnp.float32(0.5)}, sown)["coefficient"], 0.6)
