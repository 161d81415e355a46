"""A pre-norm decoder, dense or sparse. B batch, S sequence, D model width, V vocabulary, H heads."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.layers.attention import Attention, causal_mask
from moe_jax.layers.feed_forward import FeedForward
from moe_jax.layers.initialization import kernel_init
from moe_jax.layers.moe import MoE
from moe_jax.layers.norms import RMSNorm
from moe_jax.layers.positions import RelativeBias, RotaryAngles, rotary_angles
from moe_jax.models.config import ModelConfig
from moe_jax.routing.assignment import ROUTING_DECISION
from moe_jax.routing.router import METRICS, RNG


class Block(nn.Module):
    """Attention, then a dense or a sparse feed-forward, each on a normed copy added to the residual stream.

    Attributes:
      config: of the model.
      sparse: whether the feed-forward is a mixture of experts.
      training: whether the training capacity holds.
    """

    config: ModelConfig
    sparse: bool
    training: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        angles: RotaryAngles | None,
        mask: Bool[Array, "B 1 S S"],
        bias: Float[Array, "1 H S S"] | None,
        token_valid: Bool[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        attention = Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_width,
            init_scale=config.init_scale,
            dtype=dtype,
            name="attention",
        )
        x = x + attention(RMSNorm(dtype, name="attention_norm")(x), angles, mask, bias)
        normed = RMSNorm(dtype, name="feed_forward_norm")(x)
        if self.sparse:
            return x + self._moe()(normed, token_valid)
        feed_forward = FeedForward(config.ffn, config.ffn_dim, config.init_scale, dtype, name="feed_forward")
        return x + feed_forward(normed)

    def _moe(self) -> MoE:
        config, moe = self.config, self.config.moe
        evaluation = moe.capacity_factor if moe.eval_capacity_factor is None else moe.eval_capacity_factor
        return MoE(
            num_experts=moe.num_experts,
            router=moe.router,
            k=moe.k,
            capacity_factor=moe.capacity_factor if self.training else evaluation,
            group_size=moe.group_size,
            kind=config.ffn,
            expert_dim=config.expert_dim,
            execution=moe.execution,
            router_options=moe.router_options,
            init_scale=config.init_scale,
            dtype=jnp.dtype(config.dtype),
            name="moe",
        )


class Period(nn.Module):
    """The shortest repeating run of blocks, as the body of a scan over its repeats."""

    config: ModelConfig
    training: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], *shared: Any) -> tuple[Float[Array, "B S D"], None]:
        for i in range(self.config.period):
            x = block_class(self.config)(self.config, i in self.config.moe_layers, self.training, name=f"block_{i}")(
                x, *shared
            )
        return x, None


class Decoder(nn.Module):
    """A causal language model over packed documents.

    Attributes:
      config: the model's shape.
      training: whether the training capacity holds; evaluation may have its own.
    """

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """Float32 logits of each next token.

        Args:
          tokens: the text.
          positions: of each token in its document; None if each sequence is one document.
          segment_ids: number of each token's document, 0 for padding, which nothing routes and nothing should score;
            None likewise.
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
            bias = RelativeBias(config.num_heads, name="relative_bias")(tokens.shape[1])
        shared = (angles, causal_mask(segment_ids), bias, segment_ids != 0)
        x = RMSNorm(dtype, name="final_norm")(self._layers(embed(tokens), shared))
        if config.tie_embeddings:
            logits = embed.attend(x)
        else:
            logits = nn.Dense(
                config.vocab_size, use_bias=False, dtype=dtype, kernel_init=kernel_init(1.0), name="head"
            )(x)
        return logits.astype(jnp.float32)

    def _layers(self, x: Float[Array, "B S D"], shared: tuple[Any, ...]) -> Float[Array, "B S D"]:
        config = self.config
        if not config.scan_layers:
            for i in range(config.num_layers):
                x = block_class(config)(config, i in config.moe_layers, self.training, name=f"layer_{i}")(x, *shared)
            return x
        scan = nn.scan(
            Period,
            variable_axes={"params": 0, METRICS: 0},
            split_rngs={"params": True, RNG: True},
            in_axes=nn.broadcast,
            length=config.num_layers // config.period,
        )
        x, _ = scan(config, self.training, name="layers")(x, *shared)
        return x


def block_class(config: ModelConfig) -> type[Block]:
    """`Block`, recomputed in the backward pass if the config says so; who was routed where is saved all the same."""
    if not config.remat:
        return Block
    policy = jax.checkpoint_policies.save_only_these_names(ROUTING_DECISION)
    return nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)
