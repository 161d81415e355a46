"""The dense feed-forward layer. B batch, S sequence, D model width, F inner width."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFN_KINDS, feed_forward, products_by
from moe_jax.layers.dropout import with_dropout
from moe_jax.layers.initialization import network_weights
from moe_jax.layers.rows import apply_by_row


class FeedForward(nn.Module):
    """One network of the kind that an expert is, applied to every token.

    Attributes:
      kind: a name in FFN_KINDS.
      ffn_dim: F.
      init_scale: see `kernel_init`.
      dtype: compute type.
      dropout: share of hidden values that are set to 0.
    """

    kind: str
    ffn_dim: int
    init_scale: float
    dtype: jnp.dtype
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        kind = FFN_KINDS[self.kind]
        weights = network_weights(self, kind, x.shape[-1], self.ffn_dim, self.init_scale, self.dtype)
        products, network = products_by(jnp.matmul), with_dropout(kind, self.dropout)
        return apply_by_row(lambda rows: feed_forward(rows, weights, network, products), x.astype(self.dtype))
