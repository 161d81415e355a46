"""The mixture-of-experts layer: joins a router and a way of running experts.

B batch, S sequence, D model width, E experts, F expert width.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from moe_jax.configuration import require
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.run import EXECUTIONS
from moe_jax.layers.initialization import kernel_init
from moe_jax.routing import ROUTERS


class MoE(nn.Module):
    """Routes groups of tokens and runs their experts; a token that no expert runs gets zeros.

    Attributes:
      num_experts: E.
      expert_dim: F.
      router: a name in ROUTERS.
      k: experts per token.
      capacity_factor: seats relative to even load; None drops nothing.
      group_size: tokens that share one capacity; None makes each sequence a group.
      kind: what an expert computes, a name in FFN_KINDS.
      execution: a name in EXECUTIONS.
      router_options: further fields of the router's module.
      init_scale: see `kernel_init`.
      dtype: compute type of the experts; the router is float32.
    """

    num_experts: int
    expert_dim: int
    router: str = "switch"
    k: int = 1
    capacity_factor: float | None = 1.25
    group_size: int | None = None
    kind: str = "relu"
    execution: str = "padded"
    router_options: Mapping[str, Any] = FrozenDict()
    init_scale: float = 1.0
    dtype: jnp.dtype = jnp.dtype(jnp.float32)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], token_valid: Bool[Array, "B S"] | None = None
    ) -> Float[Array, "B S D"]:
        """Runs tokens `x`; `token_valid` is false for padding, which gets zeros, and None where there is none."""
        if token_valid is None:
            token_valid = jnp.ones(x.shape[:2], bool)
        kind = FFN_KINDS[self.kind]
        weights = {
            name: self.param(
                f"experts_{name}",
                kernel_init(self.init_scale, batch_axes=(0,)),
                (self.num_experts, *shape),
                jnp.float32,
            ).astype(self.dtype)
            for name, shape in kind.shapes(x.shape[-1], self.expert_dim).items()
        }
        group_size = self.group_size or x.shape[1]
        count = token_valid.size
        require(count % group_size == 0, "model.moe.group_size", group_size, f"a divisor of {count} tokens")
        # Padding may hold anything, even NaN, which a weight of 0 would pass on.
        tokens = jnp.where(token_valid[..., None], x, jnp.zeros((), x.dtype)).reshape(-1, group_size, x.shape[-1])
        router = ROUTERS[self.router](
            num_experts=self.num_experts,
            k=self.k,
            capacity_factor=self.capacity_factor,
            name="router",
            **self.router_options,
        )
        assignment = router(tokens, token_valid.reshape(tokens.shape[:2]))
        y = EXECUTIONS[self.execution](tokens.astype(self.dtype), assignment, weights, kind)
        return y.reshape(x.shape)
