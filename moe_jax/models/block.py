"""One layer: attention and a dense or sparse feed-forward. B batch, S sequence, D model width, H heads."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.layers.attention import Attention
from moe_jax.layers.feed_forward import FeedForward
from moe_jax.layers.moe import MoE
from moe_jax.layers.norms import RMSNorm
from moe_jax.layers.positions import RotaryAngles
from moe_jax.models.config import ModelConfig


class Block(nn.Module):
    """Attention, then a dense or a sparse feed-forward, each on a normed copy added to the residual stream.

    Attributes:
      config: of the model.
      sparse: whether the feed-forward is a mixture of experts.
      training: whether the training capacity holds, and routers draw and explore.
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
        bias: Float[Array, "#B H S S"] | None,
        token_valid: Bool[Array, "B S"],
        ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        attention = Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_width,
            causal=config.causal,
            init_scale=config.init_scale,
            dtype=dtype,
            name="attention",
        )
        x = x + attention(RMSNorm(dtype, name="attention_norm")(x), angles, mask, bias)
        normed = RMSNorm(dtype, name="feed_forward_norm")(x)
        if self.sparse:
            return x + self._moe()(normed, token_valid, ids, positions)
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
            kind=config.expert_ffn,
            expert_dim=config.expert_dim,
            execution=moe.execution,
            kernel=moe.kernel,
            router_options=moe.router_options,
            capacity_rule=moe.capacity_rule,
            loss_level=moe.loss_level,
            combine=moe.combine,
            shared_dim=moe.shared_dim,
            shared_gate=moe.shared_gate,
            training=self.training,
            init_scale=config.init_scale,
            dtype=jnp.dtype(config.dtype),
            parallel=moe.parallel,
            name="moe",
        )
