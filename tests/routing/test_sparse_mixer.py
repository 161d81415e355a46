"""SparseMixer against the released code of Phi-3.5-MoE, and by counts of its draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from moe_jax.routing.sparse_mixer import mixed_choice
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.problems import SEEDS
from tests.routing.routers import S


@pytest.mark.parametrize("training", [False, True])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_sparse_mixer_is_phi_s(training, seed):
    """Weights and their gradient; in training, with the draws that torch made."""
    torch.manual_seed(seed)
    scores = (torch.randn(S, 6) * 0.5).requires_grad_()
    tolerance = 0.3
    cotangent = torch.randn(S, 2)
    expected, chosen = sparsemixer(scores, tolerance, training, 2)
    (expected * cotangent).sum().backward()

    def ours(logits):
        allowed, weights = jnp.ones((1, S, 6), bool), []
        for choice in range(2):
            expert = jnp.asarray(chosen[:, choice].numpy().astype(np.int32))[None]
            weight, decided = mixed_choice(logits, allowed, tolerance, None)
            if training:
                weight = forced(logits, allowed, expert)
            else:
                np.testing.assert_array_equal(decided, expert)
            allowed &= ~jax.nn.one_hot(expert, 6, dtype=jnp.bool_)
            weights.append(weight)
        return jnp.stack(weights, axis=-1)

    def forced(logits, allowed, expert):
        """The weight when torch's expert is drawn, and its coin is read off its weight."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "categorical", lambda *_: expert)
            patch.setattr(jax.random, "uniform", lambda *_: jnp.ones(expert.shape))
            whole, _ = mixed_choice(logits, allowed, tolerance, jax.random.key(0))
            patch.setattr(jax.random, "uniform", lambda *_: jnp.zeros(expert.shape))
            cut, _ = mixed_choice(logits, allowed, tolerance, jax.random.key(0))
        theirs = jnp.asarray(expected.detach().numpy())[None, :, int(6 - allowed[0, 0].sum())]
        return jnp.where(jnp.abs(jax.lax.stop_gradient(whole) - theirs) < 1e-3, whole, cut)

    logits = jnp.asarray(scores.detach().numpy())[None]
    weights, vjp = jax.vjp(ours, logits)
    # Their 1/3 is written 0.3333 and 0.6667.
    assert_close(weights[0], expected.detach(), 1e-4)
    assert_close(vjp(jnp.asarray(cotangent.numpy())[None])[0][0], scores.grad, 1e-4)


def test_sparse_mixer_draws_by_probability_and_cuts_three_of_four_others():
    logits = jnp.broadcast_to(jnp.asarray([0.3, 0.0, 0.2]), (1, 8000, 3))
    weight, expert = mixed_choice(logits, jnp.ones(logits.shape, bool), 5.0, jax.random.key(0))
    probabilities = references.softmax(np.asarray([0.3, 0.0, 0.2]))
    share = np.bincount(np.asarray(expert[0]), minlength=3) / 8000
    assert (np.abs(share - probabilities) < 5 * np.sqrt(0.25 / 8000)).all()
    relative = np.asarray(weight[0]) / probabilities[np.asarray(expert[0])]
    assert (np.abs(relative[np.asarray(expert[0]) == 0] - 1) < 1e-5).all()
    others = relative[np.asarray(expert[0]) != 0]
    assert set(np.round(others, 4)) == {1.0, 0.3333}
    assert abs((others < 0.5).mean() - 0.75) < 0.04
