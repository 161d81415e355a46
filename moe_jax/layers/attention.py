"""Attention within documents, and to another text's.

B batch, S sequence, R sequence of the keys, D model width, H query heads, K key-value heads, N width of one head.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.layers.initialization import kernel_init
from moe_jax.layers.positions import RotaryAngles, rotate
from moe_jax.layers.rows import apply_by_row
from moe_jax.runtime.remat import saveable

# Blocks of queries that a causal sequence is cut into, if they are long enough to fill a processor: of 4, the logits
# that are computed are 5/8 of all.
BLOCKS = 4
SHORTEST_BLOCK = 64


def attention_mask(segment_ids: Int[Array, "B S"], causal: bool) -> Bool[Array, "B 1 S S"]:
    """Each token sees its document, if `causal` only up to itself; a document is a run of one segment id."""
    same_document = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if not causal:
        return same_document
    length = segment_ids.shape[1]
    return same_document & jnp.tril(jnp.ones((length, length), bool))[None, None]


def memory_mask(segment_ids: Int[Array, "B S"], memory_segment_ids: Int[Array, "B R"]) -> Bool[Array, "B 1 S R"]:
    """Each token sees what has its segment id in the other text; where nothing has, as for padding, it sees all."""
    same = segment_ids[:, None, :, None] == memory_segment_ids[:, None, None, :]
    return same | ~same.any(axis=-1, keepdims=True)


def query_blocks(length: int, causal: bool) -> int:
    """How many blocks the queries of a sequence are cut into, each of which meets the keys up to its end."""
    return BLOCKS if causal and length % BLOCKS == 0 and length >= BLOCKS * SHORTEST_BLOCK else 1


def computed_keys(length: int, causal: bool) -> float:
    """How many keys a query meets on average, of a sequence of `length`, those that its mask hides included."""
    return length * (1 + 1 / query_blocks(length, causal)) / 2


def attend(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B R K N"],
    value: Float[Array, "B R K N"],
    mask: Bool[Array, "B 1 S R"],
    bias: Float[Array, "#B H S R"] | None,
    causal: bool,
    dropout: Callable[[Float[Array, "..."]], Float[Array, "..."]] = lambda weights: weights,
) -> Float[Array, "B S H N"]:
    """Scaled dot-product attention, softmax in float32 (Vaswani et al. 2017, equation 1).

    Written out because the gradient of `jax.nn.dot_product_attention` in bfloat16 fails under strict dtype promotion.

    Args:
      query, key, value: heads; with K key-value heads, query head h meets key-value head h * K // H.
      mask: true where a query (third axis) may see a key (last axis); each must see one.
      bias: added to the logits.
      causal: that the mask shows no later key to any query; what all queries of a block cannot see is then left out.
      dropout: of weights, applied before they are normalised, to the same effect.
    """
    batch, length, heads, width = query.shape
    keys, kv_heads = key.shape[1:3]
    # By head first, the queries of one key's heads together.
    query = (query * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if bias is not None:
        bias = bias.reshape(bias.shape[0], kv_heads, -1, length, keys)
    block = length // query_blocks(length, causal)
    mixed = []
    for end in range(block, length + 1, block):
        rows, past = slice(end - block, end), end if causal else keys
        mixed.append(
            _mix(
                query[:, :, :, rows],
                key[:, :, :past],
                value[:, :, :past],
                mask[:, :, None, rows, :past],
                None if bias is None else bias[:, :, :, rows, :past],
                dropout,
            )
        )
    return jnp.concatenate(mixed, axis=3).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _mix(
    query: Float[Array, "B K M Q N"],
    key: Float[Array, "B K R N"],
    value: Float[Array, "B K R N"],
    mask: Bool[Array, "B 1 1 Q R"],
    bias: Float[Array, "#B K M Q R"] | None,
    dropout: Callable[[Float[Array, "..."]], Float[Array, "..."]],
) -> Float[Array, "B K M Q N"]:
    """The values that Q positions' queries see, M query heads to a key, weighted by the softmax of their logits."""
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


class Attention(nn.Module):
    """Multi-head attention; with fewer key-value heads than query heads, grouped-query attention.

    Attributes:
      num_heads: H.
      num_kv_heads: key and value heads; each serves num_heads / num_kv_heads query heads.
      head_dim: N.
      causal: whether no token sees a later one.
      init_scale: see `kernel_init`.
      dtype: compute type; the softmax is float32.
      dropout: share of the weights that training sets to 0.
      training: whether it does.
      mixture: makes the mixture of experts, by its output's width and name, that takes the place of the projection to
        queries, and of that to keys and values (Switch Transformer, appendix A); None has plain ones.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool
    init_scale: float
    dtype: jnp.dtype
    dropout: float = 0.0
    training: bool = False
    mixture: Callable[[int, str], Callable[[Float[Array, "B S D"]], Float[Array, "B S M"]]] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        angles: RotaryAngles | None,
        mask: Bool[Array, "B 1 S R"],
        bias: Float[Array, "#B H S R"] | None,
        memory: Float[Array, "B R D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Mixes what tokens see of `memory`, or without one of themselves."""
        query, key, value = (saveable(heads, "attention_heads") for heads in self._heads(x, memory))
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        dropout = nn.Dropout(self.dropout, deterministic=not self.training)
        mixed = attend(query, key, value, mask, bias, self.causal, dropout)
        return self._project(mixed.reshape(*x.shape[:2], -1), x.shape[-1], "output")

    def _heads(
        self, x: Float[Array, "B S D"], memory: Float[Array, "B R D"] | None
    ) -> tuple[Float[Array, "B S H N"], Float[Array, "B R K N"], Float[Array, "B R K N"]]:
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if self.mixture is None:
            source = x if memory is None else memory
            query = self._project(x, width, "query")
            key, value = self._project(source, kv_width, "key"), self._project(source, kv_width, "value")
        else:
            query = self.mixture(width, "query_moe")(x)
            key, value = jnp.split(self.mixture(2 * kv_width, "key_value_moe")(x), 2, axis=-1)
        return tuple(y.reshape(*y.shape[:2], -1, self.head_dim) for y in (query, key, value))

    def _project(self, x: Float[Array, "B S M"], width: int, name: str) -> Float[Array, "B S N"]:
        dense = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=kernel_init(self.init_scale), name=name)
        return apply_by_row(dense, x)
