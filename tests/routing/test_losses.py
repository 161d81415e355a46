"""Losses against NumPy loops, published values and transformers' functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral_balance
from transformers.models.switch_transformers.modeling_switch_transformers import (
    load_balancing_loss_func as switch_balance,
)
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from moe_jax.routing.losses import balance_loss, z_loss
from moe_jax.routing.statistics import mean_where
from tests.comparison import assert_close
from tests.routing import references

G, S, E = 3, 8, 4


def problem(seed, share_valid=1.0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(G, S, E)), jnp.float32)
    return logits, jnp.asarray(rng.uniform(size=(G, S)) < share_valid)


def top(logits, k):
    return jax.lax.top_k(logits, k)[1].astype(jnp.int32)


@given(st.integers(0, 99), st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.integers(1, E))
def test_losses_equal_loops(seed, share_valid, k):
    logits, valid = problem(seed, share_valid)
    probabilities, expert = jax.nn.softmax(logits), top(logits, k)
    expected = references.balance(*map(np.asarray, (probabilities, expert, valid)))
    assert_close(balance_loss(probabilities, expert, valid).value, expected, 1e-6)
    assert_close(z_loss(logits, valid).value, references.z(np.asarray(logits), np.asarray(valid)), 1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_loss_is_1_at_balance_and_experts_over_k_at_collapse(k):
    valid = jnp.ones((G, S), bool)
    in_turn = jnp.broadcast_to((jnp.arange(S)[:, None] + jnp.arange(k)[None]) % E, (G, S, k))
    assert_close(balance_loss(jnp.full((G, S, E), 1 / E), in_turn, valid).value, 1.0, 1e-6)
    same = jnp.broadcast_to(jnp.arange(k), (G, S, k))
    certain = jnp.broadcast_to((jnp.arange(E) < k).astype(jnp.float32) / k, (G, S, E))
    assert_close(balance_loss(certain, same, valid).value, E / k, 1e-6)


def test_groups_are_balanced_one_by_one():
    """Two groups collapsed on different experts are not balanced, though their union is: groups are not pooled."""
    expert = jnp.broadcast_to(jnp.asarray([[[0]], [[1]]]), (2, S, 1))
    probabilities = jax.nn.one_hot(expert[..., 0], 2)
    assert_close(balance_loss(probabilities, expert, jnp.ones((2, S), bool)).value, 2.0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balance_loss_is_that_of_mixtral_in_transformers_over_k(k):
    """Theirs adds the shares of the k choices up; one group of one layer, with and without padding."""
    logits, valid = problem(5, 0.7)
    for mask in (valid, jnp.ones_like(valid)):
        theirs = mixtral_balance(
            (torch.tensor(np.asarray(logits[0])),), E, k, torch.tensor(np.asarray(mask[:1], np.float32))
        )
        ours = balance_loss(jax.nn.softmax(logits[:1]), top(logits[:1], k), mask[:1]).value
        assert_close(ours, float(theirs) / k, 1e-6)


def test_losses_equal_those_of_switch_in_transformers():
    logits, valid = problem(6)
    logits_torch = torch.tensor(np.asarray(logits), requires_grad=True)
    probabilities = torch.softmax(logits_torch, dim=-1)
    theirs = switch_balance(probabilities, probabilities.argmax(dim=-1)), router_z_loss_func(logits_torch)
    ours = (
        (lambda logits: balance_loss(jax.nn.softmax(logits), top(logits, 1), valid).value),
        (lambda logits: z_loss(logits, valid).value),
    )
    for expected, loss in zip(theirs, ours, strict=True):
        value, gradient = jax.value_and_grad(loss)(logits)
        assert_close(value, expected.detach(), 1e-6)
        assert_close(gradient, torch.autograd.grad(expected, logits_torch, retain_graph=True)[0])


def test_padding_pays_no_loss_and_gets_no_gradient():
    logits, _ = problem(7)
    valid = jnp.broadcast_to(jnp.arange(S) < 5, (G, S))

    def losses(logits, valid):
        return balance_loss(jax.nn.softmax(logits), top(logits, 2), valid).value + z_loss(logits, valid).value

    value, gradient = jax.value_and_grad(losses)(logits, valid)
    expected, expected_gradient = jax.value_and_grad(losses)(logits[:, :5], valid[:, :5])
    assert_close(value, expected, 1e-6)
    assert_close(gradient[:, :5], expected_gradient)
    assert (gradient[:, 5:] == 0).all()


def test_mean_where():
    x, mask = jnp.asarray([1.0, 2.0, jnp.nan]), jnp.asarray([True, True, False])
    assert mean_where(x, mask).value == 1.5
    assert mean_where(x, jnp.zeros(3, bool)).value == 0.0
