"""Blocks on top of one another, with what all of them share.

B batch, S sequence, R sequence of the encoder, D model width, V vocabulary, H heads.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.layers.attention import attention_mask
from moe_jax.layers.dropout import DROPOUT
from moe_jax.layers.norms import RMSNorm
from moe_jax.layers.positions import RelativeBias, rotary_angles
from moe_jax.models.block import Block
from moe_jax.models.config import ModelConfig
from moe_jax.models.depth import DepthBlock
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.statistics import METRICS, SUMS
from moe_jax.runtime.remat import saves_only


class Text(NamedTuple):
    """Tokens, and where each is.

    Attributes:
      tokens: the text.
      positions: of each token in its document.
      segment_ids: number of each token's document, 0 for padding.
    """

    tokens: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]


def complete(
    tokens: Int[Array, "B S"], positions: Int[Array, "B S"] | None, segment_ids: Int[Array, "B S"] | None
) -> Text:
    """With None for positions, and for segment ids, each sequence is one document."""
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return Text(tokens, positions, jnp.ones_like(tokens) if segment_ids is None else segment_ids)


class Period(nn.Module):
    """The shortest repeating run of blocks, as the body of a scan over its repeats."""

    config: ModelConfig
    training: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], *shared: Any) -> tuple[Float[Array, "B S D"], None]:
        for i in range(self.config.period):
            x = make_block(self.config, i, self.training, f"block_{i}")(x, *shared)
        return x, None


class Stack(nn.Module):
    """All blocks of an encoder or a decoder, and the norm of the last one's values.

    Attributes:
      config: of this stack.
      training: see `Decoder`.
    """

    config: ModelConfig
    training: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        text: Text,
        memory: Float[Array, "B R D"] | None = None,
        memory_mask: Bool[Array, "B 1 S R"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs embedded tokens.

        Args:
          x: the tokens, embedded.
          text: the tokens.
          memory: the encoder's values, for a decoder that attends to them.
          memory_mask: which of them each token sees.
        """
        return run_blocks(self.config, self.training, x, text, memory, memory_mask)


def run_blocks(
    config: ModelConfig,
    training: bool,
    x: Float[Array, "B S D"],
    text: Text,
    memory: Float[Array, "B R D"] | None = None,
    memory_mask: Bool[Array, "B 1 S R"] | None = None,
) -> Float[Array, "B S D"]:
    """What a `Stack` does, with its parameters in the module that is under way."""
    angles = bias = None
    if config.positions == "rope":
        angles = rotary_angles(text.positions, config.head_width, config.rope_theta)
    else:
        std = config.relative_bias_std
        bias = RelativeBias(config.num_heads, config.causal, init_std=std, name="relative_bias")(text.tokens.shape[1])
    mask = attention_mask(text.segment_ids, config.causal)
    shared = angles, mask, bias, text.segment_ids != 0, text.tokens, text.positions, memory, memory_mask
    dropout = nn.Dropout(config.dropout, deterministic=not training)
    x = dropout(x)
    if config.scan_layers:
        scan = nn.scan(
            Period,
            variable_axes={"params": 0, METRICS: 0, SUMS: 0, STATE: 0},
            split_rngs={"params": True, RNG: True, DROPOUT: True},
            in_axes=nn.broadcast,
            length=config.num_layers // config.period,
        )
        x, _ = scan(config, training, name="layers")(x, *shared)
    else:
        for i in range(config.num_layers):
            x = make_block(config, i, training, f"layer_{i}")(x, *shared)
    return dropout(RMSNorm(jnp.dtype(config.dtype), name="final_norm")(x))


def make_block(config: ModelConfig, layer: int, training: bool, name: str) -> Block:
    """Of a layer's place in the model; recomputed in the backward pass if the config says so.

    Who was routed where is saved all the same, and what the config names.
    """
    block = DepthBlock if layer in config.depth_layers else Block
    if config.remat:
        policy = saves_only(*config.remat_saves)
        block = nn.remat(block, policy=policy, prevent_cse=not config.scan_layers)
    return block(config, layer, training, name=name)
