"""Attention, positions and norms against torch and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from moe_jax.layers.attention.attend import attend
from moe_jax.layers.attention.masks import BLOCKS, SHORTEST_BLOCK, attention_mask, computed_keys, key_ranges
from moe_jax.layers.norms import RMS, Layer
from moe_jax.layers.positions import RelativeBias, T5Bias, relative_bucket, rotary_angles, rotate
from tests.comparison import assert_close


@pytest.mark.parametrize("length", [7, BLOCKS * SHORTEST_BLOCK], ids=["one_block", "blocks"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("biased", "causal"), [(False, True), (True, True), (True, False)])
def test_attend_equals_torch(kv_heads, biased, causal, length):
    """Values and gradients, with documents packed, grouped heads and a bias."""
    rng = np.random.default_rng(kv_heads)
    query, *key_value = (rng.normal(size=(2, length, heads, 6)).astype(np.float32) for heads in (4, kv_heads, kv_heads))
    bias = rng.normal(size=(1, 4, length, length)).astype(np.float32) * biased
    cotangent = rng.normal(size=query.shape).astype(np.float32)
    # A document and the next, and one before padding.
    place, ends = np.arange(length), [[3 * length // 7], [5 * length // 7]]
    segments = jnp.asarray(np.where(place < ends, 1, [[2], [0]]), jnp.int32)
    mask = attention_mask(segments, causal)

    tensors = [torch.tensor(x, requires_grad=True) for x in (query, *key_value, bias)]
    permuted = [t.permute(0, 2, 1, 3) for t in tensors[:3]]
    mask_torch = torch.tensor(np.where(mask, 0.0, -np.inf), dtype=torch.float32) + tensors[3]
    expected = torch.nn.functional.scaled_dot_product_attention(*permuted, attn_mask=mask_torch, enable_gqa=True)
    expected = expected.permute(0, 2, 1, 3)
    expected.backward(torch.tensor(cotangent))

    inputs, ranges = [jnp.asarray(x) for x in (query, *key_value, bias)], key_ranges(length, length, causal)

    @jax.jit
    def value_and_gradients(inputs, cotangent):
        y, vjp = jax.vjp(lambda q, k, v, b: attend(q, k, v, mask, b if biased else None, ranges), *inputs)
        return y, vjp(cotangent)

    actual, gradients = value_and_gradients(inputs, cotangent)
    assert_close(actual, expected.detach())
    for gradient, tensor in list(zip(gradients, tensors, strict=True))[: 3 + biased]:
        assert_close(gradient, tensor.grad)


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_equals_a_loop(causal):
    segments = np.asarray([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    mask = attention_mask(jnp.asarray(segments, jnp.int32), causal)
    for b, q, k in np.ndindex(2, 6, 6):
        assert mask[b, 0, q, k] == ((k <= q or not causal) and segments[b, q] == segments[b, k])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 64), (8, 20)])
def test_relative_buckets_equal_those_of_t5(buckets, farthest, causal):
    """A distance on the edge of a bucket may round either way, by one bucket; the default has no such distance."""
    distances = np.arange(-300, 400)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(-distances), bidirectional=not causal, num_buckets=buckets, max_distance=farthest
    )
    np.testing.assert_array_equal(relative_bucket(jnp.asarray(distances), causal, buckets, farthest), expected.numpy())


def test_relative_bias_reads_its_table_by_distance():
    module = RelativeBias(T5Bias(), heads=3)
    table = jnp.arange(96.0).reshape(32, 3)
    bias = module.apply({"params": {"table": table}}, 40)
    assert bias.shape == (1, 3, 40, 40)
    assert bias[0, 1, 7, 4] == table[3, 1]
    assert bias[0, 2, 4, 7] == table[0, 2]
    assert bias[0, 0, 39, 0] == table[int(relative_bucket(jnp.asarray(39), True)), 0]


def test_relative_bias_starts_as_widely_as_asked():
    table = RelativeBias(T5Bias(init_std=0.125), heads=300).init(jax.random.key(0), 4)["params"]["table"]
    assert float(jnp.std(table)) == pytest.approx(0.125, rel=0.05)


def test_rotation_turns_pairs_by_position_and_keeps_relative_angles():
    """Query and key products depend on the distance alone, and each pair turns by position * theta^(-2i/N)."""
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def turned(x, position):
        angles = rotary_angles(jnp.full((1, 1), position, jnp.int32), 8, 100.0)
        return np.asarray(rotate(x, angles)).reshape(-1)

    products = [turned(query, position + 5) @ turned(key, position) for position in (0, 3, 200)]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    for i in range(4):
        pair = complex(query[0, 0, 0, i], query[0, 0, 0, i + 4]) * np.exp(1j * 3 * 100.0 ** (-i / 4))
        np.testing.assert_allclose(turned(query, 3)[[i, i + 4]], [pair.real, pair.imag], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (RMS(), torch.nn.RMSNorm(8, eps=1e-6)),
        (RMS(eps=0.5), torch.nn.RMSNorm(8, eps=0.5)),
        (Layer(), torch.nn.LayerNorm(8, eps=1e-5)),
        (Layer(eps=0.5, bias=False), torch.nn.LayerNorm(8, eps=0.5, bias=False)),
    ],
)
def test_norms_equal_torch(kind, theirs):
    """Also far from zero, where a layer norm of uncentred values would cancel."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 3, 8)) + np.asarray([[[0.0]], [[30.0]]])).astype(np.float32)
    params = {
        name: rng.normal(size=parameter.shape).astype(np.float32) for name, parameter in kind.parameters(8).items()
    }
    theirs.load_state_dict(
        {"weight": torch.tensor(params["scale"])} | {n: torch.tensor(p) for n, p in params.items() if n == "bias"}
    )
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        y = kind.make(jnp.dtype(dtype), "norm").apply({"params": params}, jnp.asarray(x, dtype))
        assert y.dtype == dtype
        assert_close(y, theirs(torch.tensor(np.asarray(jnp.asarray(x, dtype), np.float32))).detach(), tolerance)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 100, 1000])
@pytest.mark.parametrize("length", [9, BLOCKS * SHORTEST_BLOCK], ids=["one_block", "blocks"])
def test_a_window_is_attention_under_its_mask(window, causal, length):
    """Keys that no query of a block sees are left out, and no number changes; gradients, too."""
    rng = np.random.default_rng(window)
    query, key, value = (jnp.asarray(rng.normal(size=(1, length, 2, 4)), jnp.float32) for _ in range(3))
    mask = attention_mask(jnp.ones((1, length), jnp.int32), causal, window)
    place = np.arange(length)
    distance = place[:, None] - place[None]
    np.testing.assert_array_equal(mask[0, 0], (np.abs(distance) < window) & ((distance >= 0) | (not causal)))

    def run(ranges):
        @jax.jit
        def value_and_gradients(*heads):
            y, vjp = jax.vjp(lambda *heads: attend(*heads, mask, None, ranges), *heads)
            return y, *vjp(y)

        return value_and_gradients(query, key, value)

    actual, expected = run(key_ranges(length, length, causal, window)), run([(slice(None), slice(None))])
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


def test_computed_keys_are_those_of_the_ranges():
    """Four blocks of 64: all 256 keys, those up to a block's end, or the window's before and the block's own."""
    assert computed_keys(256, causal=False) == 256
    assert computed_keys(256, causal=True) == (64 + 128 + 192 + 256) / 4
    assert computed_keys(256, causal=True, window=33) == (64 + 3 * 96) / 4
