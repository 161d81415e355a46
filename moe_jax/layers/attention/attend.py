"""Scaled dot-product attention over blocks of queries.

B batch, S sequence, R sequence of the keys, H query heads, K key-value heads, M = H / K, N width of a head, Q queries
of a block.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import saveable


@typed
def attend(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B R K N"],
    value: Float[Array, "B R K N"],
    mask: Bool[Array, "B 1 S R"],
    bias: Float[Array, "#B H S R"] | None,
    ranges: Sequence[tuple[slice, slice]],
    dropout: Callable[[Float[Array, "..."]], Float[Array, "..."]] = lambda weights: weights,
) -> Float[Array, "B S H N"]:
    """Computes scaled dot-product attention, softmax in float32 (Vaswani et al. 2017, equation 1).

    Written out because the gradient of `jax.nn.dot_product_attention` in bfloat16 fails under strict dtype promotion.

    Args:
      query, key, value: heads; with K key-value heads, query head h meets key-value head h * K // H.
      mask: true where a query (third axis) may see a key (last axis); each must see one.
      bias: added to the logits.
      ranges: blocks of queries and the run of keys that the mask shows to any of them, see `key_ranges`.
      dropout: drops weights; it is applied before they are normalised, to the same effect.
    """
    batch, length, heads, width = query.shape
    keys, kv_heads = key.shape[1:3]
    # By head first, the queries of one key's heads together.
    query = (query * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if bias is not None:
        bias = bias.reshape(bias.shape[0], kv_heads, -1, length, keys)
    mixed = [
        _mix(
            query[:, :, :, rows],
            key[:, :, seen],
            value[:, :, seen],
            mask[:, :, None, rows, seen],
            None if bias is None else bias[:, :, :, rows, seen],
            dropout,
        )
        for rows, seen in ranges
    ]
    return jnp.concatenate(mixed, axis=3).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _mix(
    query: Float[Array, "B K M Q N"],
    key: Float[Array, "B K R N"],
    value: Float[Array, "B K R N"],
    mask: Bool[Array, "B 1 1 Q R"],
    bias: Float[Array, "#B K M Q R"] | None,
    dropout: Callable[[Float[Array, "..."]], Float[Array, "..."]],
) -> Float[Array, "B K M Q N"]:
    """Sums the values that Q queries see, weighted by the softmax of their logits; M query heads share a key."""
    batch, kv_heads, shared, length, width = query.shape
    # Queries of one key as rows of one matrix: plain products, and gradients that are, too.
    rows = batch, kv_heads, shared * length
    logits = jnp.einsum("bkqn,bksn->bkqs", query.reshape(*rows, width), key).astype(jnp.float32)
    logits = logits.reshape(batch, kv_heads, shared, length, -1)
    if bias is not None:
        logits += bias
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    exponentials = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Normalised after the mixing, where there is less to divide.
    weights = dropout(exponentials).astype(value.dtype).reshape(*rows, -1)
    mixed = saveable(jnp.einsum("bkqs,bksn->bkqn", weights, value), "attention_mixed").reshape(query.shape)
    return mixed / exponentials.sum(axis=-1, keepdims=True).astype(mixed.dtype)
