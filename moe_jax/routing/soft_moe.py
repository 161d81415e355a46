"""Soft MoE: slots that mix all tokens, experts that run slots, tokens that mix all slots (Puigcerver et al. 2023).

G groups, S tokens of a group, D model width, E experts, P slots of an expert, N = E * P.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import capacity_per_expert
from moe_jax.routing.metrics import load_metrics, probability_metrics
from moe_jax.routing.router import Router, Tokens
from moe_jax.routing.statistics import mean_of_parts, report


@struct.dataclass
class Slots:
    """The decision of a router that mixes tokens instead of assigning them.

    y = combine @ experts(dispatch^T @ x), where slots n with n // P = e are run by expert e.

    Attributes:
      dispatch: how much each slot takes of each token; sums to 1 over the valid tokens of a group.
      combine: how much each token takes of each slot; sums to 1 over slots; 0 for padding.
      num_experts: E (static).
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    dispatch: Float[Array, "G S N"]
    combine: Float[Array, "G S N"]
    num_experts: int = struct.field(pytree_node=False)

    @property
    def per_expert(self) -> int:
        """P."""
        return self.dispatch.shape[2] // self.num_experts

    def assignment(self) -> Assignment:
        """Every slot to its expert with weight 1, so that any way of running experts runs slots as if tokens."""
        shape = self.dispatch.shape[0], self.dispatch.shape[2]
        slot = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
        return Assignment(
            token=slot,
            expert=slot // self.per_expert,
            weight=jnp.ones(shape, jnp.float32),
            requested=jnp.ones(shape, bool),
            seat=slot % self.per_expert,
            capacity=self.per_expert,
            num_tokens=shape[1],
            num_experts=self.num_experts,
            choices=1,
        )

    def fill(self, x: Float[Array, "G S D"]) -> Float[Array, "G N D"]:
        """The slots, in the type of the tokens `x`."""
        return jnp.einsum("gsn,gsd->gnd", self.dispatch.astype(x.dtype), x)

    def read(self, outputs: Float[Array, "G N D"]) -> Float[Array, "G S D"]:
        """The tokens' results from the slots' `outputs`."""
        return jnp.einsum("gsn,gnd->gsd", self.combine.astype(outputs.dtype), outputs)


def slot_weights(
    logits: Float[Array, "G S N"], token_valid: Bool[Array, "G S"]
) -> tuple[Float[Array, "G S N"], Float[Array, "G S N"]]:
    """Dispatch, a softmax over tokens, and combine, one over slots (equations 1 and 3).

    Args:
      logits: of each token and slot, float32.
      token_valid: false for padding, which no slot takes and which takes nothing.
    """
    valid = token_valid[..., None]
    dispatch = jax.nn.softmax(logits, axis=1, where=valid)
    # A group without a valid token has no softmax over them.
    return jnp.where(valid, dispatch, 0.0), jnp.where(valid, jax.nn.softmax(logits, axis=2), 0.0)


def direction(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Vectors of length 1 along `axis`."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=axis, keepdims=True) + 1e-6)


class SoftMoE(Router):
    """A mixture without an assignment: no token is dropped, no expert is idle, every token reaches every expert.

    So it is never causal. P = ceil(S * k / E): with `k` 1 there are as many slots as tokens. Logits are products of
    directions, so that they do not sharpen as D grows (section 2.3).
    """

    drops = False
    mixes = True
    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {}
    paper = "Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts, arXiv:2308.00951"
    year = 2023

    @property
    def causal(self) -> bool:
        return False

    def parameter_counts(self, tokens: int, model_dim: int) -> tuple[int, int]:
        return model_dim * self.slots(tokens), 1

    def slots(self, tokens: int) -> int:
        """N for groups of `tokens`."""
        return self.num_experts * capacity_per_expert(1.0, tokens, self.k, self.num_experts)

    @nn.compact
    def __call__(self, tokens: Tokens) -> Slots:
        """Mixes `tokens`; padding is in no slot and in no metric."""
        x = tokens.x.astype(jnp.float32)
        shape = (x.shape[2], self.slots(x.shape[1]))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (), jnp.float32)
        logits = scale * jnp.matmul(direction(x, -1), direction(kernel, 0), precision=jax.lax.Precision.HIGHEST)
        dispatch, combine = slot_weights(logits, tokens.valid)
        by_expert = combine.reshape(*combine.shape[:2], self.num_experts, -1).sum(axis=-1)
        nothing = mean_of_parts(jnp.float32(0.0))
        report(
            self,
            load_metrics(by_expert.sum(axis=(0, 1)))
            | probability_metrics(by_expert, tokens.valid)
            | {"fraction_dropped": nothing, "tokens_unrouted": nothing},
        )
        return Slots(dispatch, combine, self.num_experts)
