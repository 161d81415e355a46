"""Soft MoE: slots that mix all tokens, experts that run slots, tokens that mix all slots (Puigcerver et al. 2023).

G groups, S tokens of a group, D model width, E experts, P slots of an expert, N = E * P.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import capacity_per_expert
from moe_jax.routing.decision import Decision
from moe_jax.routing.metrics import load_metrics
from moe_jax.routing.router import Call, Router, Setting, Tokens, exact_matmul, whole
from moe_jax.routing.statistics import Metrics, mean_of_parts
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.parameters import Parameter


@struct.dataclass
class Slots(Decision):
    """The decision of a router that mixes tokens instead of assigning them.

    y = combine @ experts(dispatch^T @ x), where expert e runs the slots n with n // P = e.

    Attributes:
      dispatch: weight of each token in each slot; sums to 1 over the valid tokens of a group.
      combine: weight of each slot in each token's result; sums to 1 over slots; 0 for padding.
      num_experts: E (static).
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    dispatch: Float[Array, "G S N"]
    combine: Float[Array, "G S N"]
    num_experts: int = struct.field(pytree_node=False)

    # Experts run slots with weight 1.
    combines: ClassVar[tuple[str, ...]] = ("output",)

    @property
    def per_expert(self) -> int:
        """P, the slots of each expert."""
        return self.dispatch.shape[2] // self.num_experts

    def assignment(self) -> Assignment:
        """Assigns every slot to its expert with weight 1, so that any execution runs slots as if they were tokens."""
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

    def enter(self, x: Float[Array, "G S D"]) -> Float[Array, "G N D"]:
        return jnp.einsum("gsn,gsd->gnd", self.dispatch.astype(x.dtype), x)

    def leave(self, y: Float[Array, "G N O"]) -> Float[Array, "G S O"]:
        return jnp.einsum("gsn,gno->gso", self.combine.astype(y.dtype), y)

    def combine_weights(self) -> Float[Array, "G S E"]:
        return by_expert(self.combine, self.num_experts)

    def dispatch_mask(self) -> Bool[Array, "G S E"]:
        return self.combine_weights() > 0

    def dropped_mask(self) -> Bool[Array, "G S E"]:
        return jnp.zeros_like(self.dispatch_mask())

    def describe(self, group: int) -> str:
        return f"{self.per_expert} slots of each expert"

    def rounded(self, rounding: Callable[[Float[Array, "..."]], Float[Array, "..."]]) -> "Slots":
        return self.replace(dispatch=rounding(self.dispatch), combine=rounding(self.combine))

    def metrics(self, token_valid: Bool[Array, "G S"], k: int) -> Metrics:
        nothing = mean_of_parts(jnp.float32(0.0))
        load = self.combine_weights().sum(axis=(0, 1))
        return load_metrics(load) | {"fraction_dropped": nothing, "tokens_unrouted": nothing}


def by_expert(weights: Float[Array, "G S N"], num_experts: int) -> Float[Array, "G S E"]:
    """Sums values of slots over the slots of each expert."""
    return weights.reshape(*weights.shape[:2], num_experts, -1).sum(axis=-1)


@typed
def slot_weights(
    logits: Float[Array, "G S N"], token_valid: Bool[Array, "G S"]
) -> tuple[Float[Array, "G S N"], Float[Array, "G S N"]]:
    """Computes dispatch, a softmax over tokens, and combine, a softmax over slots (equations 1 and 3).

    Args:
      logits: float32, of each token and slot.
      token_valid: false for padding, which is in no slot and gets none.
    """
    valid = token_valid[..., None]
    dispatch = jax.nn.softmax(logits, axis=1, where=valid)
    # A group without a valid token has no softmax over them.
    return jnp.where(valid, dispatch, 0.0), jnp.where(valid, jax.nn.softmax(logits, axis=2), 0.0)


def direction(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Scales vectors along `axis` to length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=axis, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class SoftMoE(Router):
    """Soft MoE: experts run slots that mix all tokens, so that no token is dropped and no expert is idle.

    Every token reaches every expert, so it is never causal. P = ceil(S * k / E): with k = 1 there are as many slots as
    tokens. Logits are products of directions, so that they do not grow with D (section 2.3).
    """

    drops = False
    needs_group_size = True
    decision = Slots
    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {}
    paper = "Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts, arXiv:2308.00951"
    year = 2023

    def causal(self, setting: Setting) -> bool:
        return False

    def chooses_by_capacity(self, setting: Setting) -> bool:
        return True

    def slots(self, tokens: int, setting: Setting) -> int:
        return setting.num_experts * capacity_per_expert(1.0, tokens, setting.k, setting.num_experts)

    def parameters(self, model_dim: int, tokens: int, setting: Setting) -> dict[str, Parameter]:
        return {"kernel": whole(model_dim, self.slots(tokens, setting)), "scale": whole(multiplies=False)}

    def initializer(self, name: str) -> nn.initializers.Initializer:
        return nn.initializers.lecun_normal() if name == "kernel" else nn.initializers.ones

    def project(self, x: Float[Array, "G S D"], call: Call) -> Float[Array, "G S N"]:
        kernel = direction(call.params["kernel"], 0)
        return call.params["scale"] * exact_matmul(direction(x, -1), kernel)

    def decide(self, logits: Float[Array, "G S N"], tokens: Tokens, call: Call) -> tuple[Slots, Metrics]:
        return Slots(*slot_weights(logits, tokens.valid), call.num_experts), {}

    def probabilities(self, logits: Float[Array, "G S N"], call: Call) -> Float[Array, "G S E"]:
        return by_expert(jax.nn.softmax(logits), call.num_experts)
