"""A pre-norm transformer over text, dense or sparse, causal or seeing both sides.

B batch, S sequence, D model width, V vocabulary, H heads."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.devices import kept_by_token
from moe_jax.layers.attention import attention_mask
from moe_jax.layers.by_row import by_row
from moe_jax.layers.norms import RMSNorm
from moe_jax.layers.positions import RelativeBias, rotary_angles
from moe_jax.layers.vocabulary import OutputMatrix, cross_entropy
from moe_jax.models.block import Block
from moe_jax.models.config import ModelConfig
from moe_jax.models.depth import DepthBlock
from moe_jax.remat import saves_only
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.statistics import METRICS, SUMS


class Period(nn.Module):
    """The shortest repeating run of blocks, as the body of a scan over its repeats."""

    config: ModelConfig
    training: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], *shared: Any) -> tuple[Float[Array, "B S D"], None]:
        for i in range(self.config.period):
            x = make_block(self.config, i, self.training, f"block_{i}")(x, *shared)
        return x, None


class Decoder(nn.Module):
    """A language model over packed documents: causal, or with `config.causal=False` an encoder.

    Attributes:
      config: the model's shape.
      training: whether the training capacity holds, and routers draw and explore; evaluation may have its own.
    """

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        targets: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"] | Float[Array, "B S"]:
        """Float32 logits of each next token, or of what each token of an encoder was; with `targets`, nats of those.

        Args:
          tokens: the text.
          positions: of each token in its document; None if each sequence is one document.
          segment_ids: number of each token's document, 0 for padding, which nothing routes and nothing should score;
            None likewise.
          targets: tokens to score, `config.loss_chunk` positions at a time.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        embed = nn.Embed(
            config.vocab_size,
            config.model_dim,
            dtype=dtype,
            embedding_init=nn.initializers.normal(config.model_dim**-0.5),
            name="embedding",
        )
        angles = bias = None
        if config.positions == "rope":
            angles = rotary_angles(positions, config.head_width, config.rope_theta)
        else:
            bias = RelativeBias(config.num_heads, config.causal, name="relative_bias")(tokens.shape[1])
        shared = (angles, attention_mask(segment_ids, config.causal), bias, segment_ids != 0, tokens, positions)
        x = RMSNorm(dtype, name="final_norm")(self._layers(kept_by_token(embed(tokens)), shared))
        tied = config.tie_embeddings
        matrix = embed.embedding.T if tied else OutputMatrix(config.vocab_size, name="head")(config.model_dim)

        def project(rows: Float[Array, "_ D"]) -> Float[Array, "_ V"]:
            return (rows @ matrix.astype(dtype)).astype(jnp.float32)

        return by_row(project, x) if targets is None else cross_entropy(project, x, targets, config.loss_chunk)

    def _layers(self, x: Float[Array, "B S D"], shared: tuple[Any, ...]) -> Float[Array, "B S D"]:
        config = self.config
        if not config.scan_layers:
            for i in range(config.num_layers):
                x = make_block(config, i, self.training, f"layer_{i}")(x, *shared)
            return x
        scan = nn.scan(
            Period,
            variable_axes={"params": 0, METRICS: 0, SUMS: 0, STATE: 0},
            split_rngs={"params": True, RNG: True},
            in_axes=nn.broadcast,
            length=config.num_layers // config.period,
        )
        x, _ = scan(config, self.training, name="layers")(x, *shared)
        return x


def make_block(config: ModelConfig, layer: int, training: bool, name: str) -> Block:
    """Of a layer's place in the model; recomputed in the backward pass if the config says so.

    Who was routed where is saved all the same, and what the config names.
    """
    block = DepthBlock if layer in config.depth_layers else Block
    if config.remat:
        policy = saves_only(*config.remat_saves)
        block = nn.remat(block, policy=policy, prevent_cse=not config.scan_layers)
    return block(config, layer in config.moe_layers, training, name=name)
