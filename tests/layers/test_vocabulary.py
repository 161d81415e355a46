"""Losses in chunks equal losses at once, and hold no more logits than a chunk's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moe_jax.configuration import ConfigError
from moe_jax.layers.vocabulary import cross_entropy, output_of
from tests.comparison import assert_close

B, S, D, V = 2, 12, 5, 17


def losses(chunk):
    def total(x, matrix, targets, weight):
        return (cross_entropy(lambda rows: rows @ matrix, x, targets, chunk) * weight).sum()

    return total


@pytest.mark.parametrize("chunk", [None, 12, 4, 1, 100])
def test_equals_torch(chunk):
    rng = np.random.default_rng(0)
    x, matrix, weight = (rng.normal(size=s).astype(np.float32) for s in [(B, S, D), (D, V), (B, S)])
    targets = rng.integers(0, V, (B, S)).astype(np.int32)
    value, gradients = jax.jit(jax.value_and_grad(losses(chunk), (0, 1)))(x, matrix, targets, weight)
    leaves = [torch.tensor(v, requires_grad=True) for v in (x, matrix)]
    logits = (leaves[0] @ leaves[1]).reshape(-1, V)
    scores = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).long().reshape(-1), reduction="none")
    expected = (scores * torch.tensor(weight).reshape(-1)).sum()
    expected.backward()
    assert_close(value, expected.detach())
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert_close(gradient, leaf.grad)


def test_a_chunk_of_logits_is_the_largest_array():
    shapes = [
        jax.ShapeDtypeStruct(s, t) for s, t in [((B, S, D), "f4"), ((D, V), "f4"), ((B, S), "i4"), ((B, S), "f4")]
    ]
    text = jax.jit(jax.grad(losses(4), (0, 1))).lower(*shapes).compile().as_text()
    assert f"f32[{B},4,{V}]" in text or f"f32[{B * 4},{V}]" in text
    assert f"f32[{B},{S},{V}]" not in text
    assert f"f32[{B * S},{V}]" not in text


def test_what_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"loss_chunk is 5; accepted: a divisor of the sequence's length"):
        cross_entropy(lambda rows: rows, jnp.ones((1, 12, 3)), jnp.ones((1, 12), jnp.int32), 5)


def test_the_gradient_of_a_tied_matrix_is_made_width_first():
    """What it is, and in the program a product [D, V]: a CPU takes many times as long for [V, D]."""
    rng = np.random.default_rng(0)
    embedding, x, weights = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1024, 32), (256, 32), (256, 1024))
    )

    @jax.jit
    def gradient(embedding, x, weights):
        return jax.grad(lambda embedding: jnp.vdot(x @ output_of(embedding), weights))(embedding)

    np.testing.assert_allclose(gradient(embedding, x, weights), weights.T @ x, rtol=1e-4, atol=1e-4)
    (product,) = re.findall(r"f32(\[[\d,]+\])\S* dot\(", gradient.lower(embedding, x, weights).compile().as_text())
    assert product == "[32,1024]"
