"""The losses of 1991 against their equations."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.routing.dense_mixture import competitive_loss, cooperative_loss, likelihood_loss
from tests.comparison import assert_close
from tests.routing import references


def test_the_losses_of_1991_are_their_equations():
    rng = np.random.default_rng(0)
    outputs, target = rng.normal(size=(7, 3, 2)), rng.normal(size=(7, 2))
    gate = references.softmax(rng.normal(size=(7, 3)))
    cooperative = competitive = likelihood = 0.0
    for t in range(7):
        errors = [((target[t] - outputs[t, e]) ** 2).sum() for e in range(3)]
        cooperative += ((target[t] - sum(gate[t, e] * outputs[t, e] for e in range(3))) ** 2).sum() / 7
        competitive += sum(gate[t, e] * errors[e] for e in range(3)) / 7
        likelihood -= np.log(sum(gate[t, e] * np.exp(-errors[e] / 2) for e in range(3))) / 7
    arrays = [jnp.asarray(x, jnp.float32) for x in (outputs, gate, target)]
    assert_close(cooperative_loss(*arrays), cooperative)
    assert_close(competitive_loss(*arrays), competitive)
    assert_close(likelihood_loss(*arrays), likelihood)
    # The gradient the paper gives: the posterior times the error.
    errors = ((target[:, None] - outputs) ** 2).sum(axis=-1)
    posterior = gate * np.exp(-errors / 2)
    posterior /= posterior.sum(axis=1, keepdims=True)
    gradient = jax.grad(likelihood_loss)(*arrays)
    assert_close(gradient, -posterior[..., None] * (target[:, None] - outputs) / 7)
