"""Stack: blocks on top of one another, and what all of them share.

B batch, S sequence, R sequence of the encoder, D model width, H heads.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.layers.attention import GroupedQuery
from moe_jax.layers.attention.context import Attending, Context
from moe_jax.layers.attention.masks import memory_mask
from moe_jax.layers.dropout import DROPOUT
from moe_jax.layers.mode import Mode
from moe_jax.layers.positions import Positions, RelativeBias, T5Bias
from moe_jax.models.block import Block, DepthBlock
from moe_jax.models.config import ModelConfig
from moe_jax.models.layer_spec import LayerSpec
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.statistics import METRICS
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import saves_only


class Text(NamedTuple):
    """Tokens, and where each is.

    Attributes:
      tokens: the text.
      positions: place of each token in its document.
      segment_ids: number of each token's document, 0 for padding.
    """

    tokens: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]


@typed
def complete(
    tokens: Int[Array, "B S"], positions: Int[Array, "B S"] | None, segment_ids: Int[Array, "B S"] | None
) -> Text:
    """Makes a text; with None for positions, or for segment ids, each sequence is one document."""
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return Text(tokens, positions, jnp.ones_like(tokens) if segment_ids is None else segment_ids)


def mode_of(config: ModelConfig, training: bool) -> Mode:
    """Returns how the layers of a model compute."""
    return Mode(training, jnp.dtype(config.dtype), config.init_scale, config.dropout)


class Pattern(nn.Module):
    """The pattern of a segment, as the body of a scan over its repeats.

    Attributes:
      config: of the stack.
      layers: of the pattern.
      training: see `Decoder`.
    """

    config: ModelConfig
    layers: tuple[LayerSpec, ...]
    training: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], context: Context) -> tuple[Float[Array, "B S D"], None]:
        """Runs the layers in turn."""
        for i, spec in enumerate(self.layers):
            x = make_block(self.config, spec, self.training, f"block_{i}")(x, context)
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
        memory_text: Text | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs embedded tokens.

        Args:
          x: the tokens, embedded.
          text: the tokens.
          memory: an encoder's values, for a decoder that attends to them.
          memory_text: the encoder's tokens; those of a segment see those with the same segment id.
        """
        return run_blocks(self.config, self.training, x, text, memory, memory_text)


def run_blocks(
    config: ModelConfig,
    training: bool,
    x: Float[Array, "B S D"],
    text: Text,
    memory: Float[Array, "B R D"] | None = None,
    memory_text: Text | None = None,
) -> Float[Array, "B S D"]:
    """Does the work of a `Stack`, with its parameters in the module that is under way."""
    context = make_context(config, text, memory, memory_text)
    drop = mode_of(config, training).drop()
    x = drop(x)
    if config.scan_layers:
        for number, segment in enumerate(config.segments):
            scan = nn.scan(
                Pattern,
                variable_axes={"params": 0, METRICS: 0, STATE: 0},
                split_rngs={"params": True, RNG: True, DROPOUT: True},
                in_axes=nn.broadcast,
                length=segment.repeats,
            )
            x, _ = scan(config, segment.pattern, training, name=f"segment_{number}")(x, context)
    else:
        for i, spec in enumerate(config.layers):
            x = make_block(config, spec, training, f"layer_{i}")(x, context)
    return drop(config.norm.make(jnp.dtype(config.dtype), "final_norm")(x))


def make_context(
    config: ModelConfig, text: Text, memory: Float[Array, "B R D"] | None, memory_text: Text | None
) -> Context:
    """Prepares masks, angles and biases, once for each kind of attention of the stack."""
    kinds, biases = attention_kinds(config), relative_biases(config, text.tokens.shape[1])
    attending = tuple(
        kind.attending(text.segment_ids, text.positions, config.causal, biases.get(_table(kind))) for kind in kinds
    )
    seen = None if memory is None else Attending(memory_mask(text.segment_ids, memory_text.segment_ids))
    valid = text.segment_ids != 0
    return Context(text.tokens, text.positions, valid, attending, memory, seen, kinds)


def attention_kinds(config: ModelConfig) -> tuple[GroupedQuery, ...]:
    """Lists the different kinds of attention of a stack, in the order of its layers."""
    return tuple(dict.fromkeys(spec.attention for spec in config.layers))


def relative_biases(config: ModelConfig, length: int) -> dict[tuple[Positions, int], Float[Array, "1 H S S"]]:
    """Computes the relative biases of a stack, one for each table that its layers share."""
    tables = relative_tables(config)
    return {table: RelativeBias(*table, config.causal, name=name)(length) for name, table in tables.items()}


def relative_tables(config: ModelConfig) -> dict[str, tuple[Positions, int]]:
    """Lists the tables of relative positions: `relative_bias`, and further ones by number."""
    tables = dict.fromkeys(_table(kind) for kind in attention_kinds(config) if isinstance(kind.positions, T5Bias))
    return {f"relative_bias{f'_{number}' * bool(number)}": table for number, table in enumerate(tables)}


def _table(kind: GroupedQuery) -> tuple[Positions, int]:
    return kind.positions, kind.heads


def make_block(config: ModelConfig, spec: LayerSpec, training: bool, name: str) -> Block:
    """Makes the block of a layer, recomputed in the backward pass if the config says so.

    Routing decisions are saved all the same, and the values that the config names.
    """
    block = Block if spec.depth is None else DepthBlock
    if config.remat:
        policy = saves_only(*config.remat_saves)
        block = nn.remat(block, policy=policy, prevent_cse=not config.scan_layers)
    return block(spec, mode_of(config, training), config.causal, name=name)
