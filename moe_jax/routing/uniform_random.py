"""Random routing, the baseline: experts are drawn evenly, whatever the token.

G groups, S tokens of a group, E experts, K choices per token, C capacity.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from moe_jax.routing.assignment import Assignment, assign_choices, top_experts
from moe_jax.routing.router import Call, Router, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import decided


@typed
def uniform_random(
    token_valid: Bool[Array, "G S"], capacity: int, num_experts: int, k: int, rng: Key[Array, ""]
) -> Assignment:
    """Routes each token to `k` different experts with weight 1 / k; all sets of experts are equally likely."""
    expert = decided(top_experts(jax.random.uniform(rng, (*token_valid.shape, num_experts), jnp.float32), k))
    requested = jnp.broadcast_to(token_valid[..., None], expert.shape)
    return assign_choices(expert, jnp.full(expert.shape, 1.0 / k, jnp.float32), requested, num_experts, capacity)


@dataclasses.dataclass(frozen=True)
class UniformRandom(Router):
    """Random routing, the baseline that a learned router must beat; it has no parameters and no losses."""

    has_parameters = False
    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {}
    paper = "Baseline of Roller et al. 2021, Hash Layers, arXiv:2106.04426"
    year = 2021

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        return uniform_random(tokens.valid, call.capacity, call.num_experts, call.k, call.rng()), {}
