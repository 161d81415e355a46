"""SparseMixer-v2, the router of GRIN and Phi-3.5-MoE: experts drawn one after the other, with a true gradient.

Liu et al. 2024, GRIN (arXiv:2409.12136), section 2; Liu et al. 2023, SparseMixer (arXiv:2310.00811).

G groups, S tokens of a group, D model width, E experts, K choices per token, C capacity.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.router import Call, Router, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import decided


@typed
def mixed_choice(
    logits: Float[Array, "G S E"], allowed: Bool[Array, "G S E"], tolerance: float, rng: Key[Array, ""] | None
) -> tuple[Float[Array, "G S"], Int[Array, "G S"]]:
    """Chooses an expert among the allowed ones; returns its weight and its index.

    Experts whose logit lies more than 2 * `tolerance` below the best one, relative to the larger of the two sizes, are
    left out. The weight is the probability among the rest. With `rng` the expert is drawn. If it is not the best, its
    weight is cut to a third in three of four cases, in the forward pass only. This is Heun's third-order method, whose
    expected gradient is that of the mixture.

    Args:
      logits: the router's, float32.
      allowed: false for experts that may not be chosen.
      tolerance: half the relative distance at which experts are left out.
      rng: key for the draws; None takes the best expert.
    """
    masked = jnp.where(allowed, logits, -jnp.inf)
    best = masked.max(axis=-1, keepdims=True)
    near = best - logits <= 2 * tolerance * jnp.maximum(jnp.abs(logits), best)
    masked = jnp.where(jax.lax.stop_gradient(near), masked, -jnp.inf)
    probabilities = jax.nn.softmax(masked)
    top = jnp.argmax(masked, axis=-1).astype(jnp.int32)
    if rng is None:
        expert = decided(top)
        return jnp.take_along_axis(probabilities, expert[..., None], axis=-1)[..., 0], expert
    draw, coin = jax.random.split(rng)
    expert = decided(jax.random.categorical(draw, jax.lax.stop_gradient(masked)).astype(jnp.int32))
    weight = jnp.take_along_axis(probabilities, expert[..., None], axis=-1)[..., 0]
    whole = decided((expert == top) | (jax.random.uniform(coin, top.shape, jnp.float32) > 0.75))
    return weight + jax.lax.stop_gradient(weight * jnp.where(whole, 0.0, -2.0 / 3.0)), expert


@dataclasses.dataclass(frozen=True)
class SparseMixer(Router):
    """Phi-3.5-MoE's router: top-1, then top-1 of the rest, each with its own softmax; weights do not sum to 1.

    Attributes:
      tolerance: see `mixed_choice`; router_jitter_noise in the released code.
    """

    tolerance: float = 0.01

    paper = "Liu et al. 2024, GRIN: Gradient-Informed MoE, arXiv:2409.12136"
    year = 2024

    def __post_init__(self) -> None:
        require(self.tolerance > 0, "tolerance", self.tolerance, "a positive number")

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        allowed = jnp.ones(logits.shape, bool)
        weights, experts = [], []
        for _ in range(call.k):
            rng = call.rng() if call.training else None
            weight, expert = mixed_choice(logits, allowed, self.tolerance, rng)
            allowed = allowed & ~jax.nn.one_hot(expert, call.num_experts, dtype=jnp.bool_)
            weights.append(weight)
            experts.append(expert)
        weight, expert = jnp.stack(weights, axis=-1), jnp.stack(experts, axis=-1)
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight, requested, call.num_experts, call.capacity)
        return assignment, {"balance_loss": call.balance_loss(jax.nn.softmax(logits), expert, tokens)}
