"""One layer: attention and a dense or sparse feed-forward.

B batch, S sequence, R sequence of an encoder, D model width, H heads, M width of a mixture's results.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.layers.attention import Attention
from moe_jax.layers.feed_forward import FeedForward
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.layers.norms import RMSNorm
from moe_jax.layers.positions import RotaryAngles
from moe_jax.models.config import ModelConfig


class Block(nn.Module):
    """Attention, then a dense or a sparse feed-forward, each on a normed copy added to the residual stream.

    Attributes:
      config: of the model.
      layer: which of its layers this is, which says what of it is sparse.
      training: whether the training capacity holds, values drop out, and routers draw and explore.
    """

    config: ModelConfig
    layer: int
    training: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        angles: RotaryAngles | None,
        mask: Bool[Array, "B 1 S S"],
        bias: Float[Array, "#B H S S"] | None,
        token_valid: Bool[Array, "B S"],
        ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        memory: Float[Array, "B R D"] | None = None,
        memory_mask: Bool[Array, "B 1 S R"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs tokens; those of a decoder that has an encoder attend to its values `memory`, too."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        routed = token_valid, ids, positions
        dropout = nn.Dropout(config.dropout, deterministic=not self.training)

        def mixture(width: int, name: str) -> Callable[[Float[Array, "B S D"]], Float[Array, "B S M"]]:
            return lambda x: self._moe(name, config.moe.projection(width))(x, *routed)

        sparse = config.sparse(self.layer, "attention")
        attention = self._attention("attention", config.causal, mixture=mixture if sparse else None)
        x = x + dropout(attention(RMSNorm(dtype, name="attention_norm")(x), angles, mask, bias))
        if memory is not None:
            normed = RMSNorm(dtype, name="cross_attention_norm")(x)
            x = x + dropout(self._attention("cross_attention", False)(normed, None, memory_mask, None, memory))
        normed = RMSNorm(dtype, name="feed_forward_norm")(x)
        if config.sparse(self.layer, "feed_forward"):
            return x + dropout(self._moe("moe", config.experts)(normed, *routed))
        feed_forward = FeedForward(
            config.ffn,
            config.ffn_dim,
            config.init_scale,
            dtype,
            config.dropout if self.training else 0.0,
            name="feed_forward",
        )
        return x + dropout(feed_forward(normed))

    def _attention(self, name: str, causal: bool, **fields: Any) -> Attention:
        config = self.config
        return Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_width,
            causal=causal,
            init_scale=config.init_scale,
            dtype=jnp.dtype(config.dtype),
            dropout=config.dropout,
            training=self.training,
            name=name,
            **fields,
        )

    def _moe(self, name: str, moe: MoEConfig) -> MoE:
        return MoE(moe, self.training, self.config.init_scale, jnp.dtype(self.config.dtype), name=name)
