"""Quantile balancing: a bias for each expert, at the quantile of scores that gives it an even share.

G groups, S tokens of a group, T valid tokens of the batch, E experts, K choices per token, C capacity.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics, mean_of_parts
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import shard_over_groups


@typed
def quantile_bias(
    scores: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], bias: Float[Array, " E"], k: int
) -> Float[Array, " E"]:
    """Computes for each expert the bias with which T * k / E tokens prefer it to their (k+1)-th choice.

    A token's threshold is the (k+1)-th largest of `scores - bias`. An expert's new bias is the (T * k / E + 1)-th
    largest, over tokens, of its score minus the token's threshold. With k = E there is nothing to balance and it is 0;
    without a valid token it stays `bias`.

    Args:
      scores: softmax of the router's logits.
      token_valid: false for padding.
      bias: the present bias.
      k: K.
    """
    num_experts = scores.shape[-1]
    if k == num_experts:
        return jnp.zeros(num_experts, jnp.float32)
    threshold = shard_over_groups(lambda scores: jax.lax.top_k(scores, k + 1)[0])(scores - bias[None, None])[..., -1:]
    surplus = jnp.where(token_valid[..., None], scores - threshold, -jnp.inf).reshape(-1, num_experts)
    share = token_valid.sum() * k // num_experts
    quantile = -jnp.sort(-surplus, axis=0)[share]
    return jnp.where(jnp.isfinite(quantile), quantile, bias)


@dataclasses.dataclass(frozen=True)
class Quantile(Router):
    """Top-k of scores minus a bias that follows the experts' quantiles; the chosen scores are scaled to sum to 1.

    The bias lives in the collection `router_state`. It is a moving average of `quantile_bias` over training steps.

    Attributes:
      rate: share of the newest value in the moving average.
    """

    rate: float = 0.1

    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {"z_loss": 0.0}
    paper = "Quantile balancing, as in the marin code base (marin-community)"
    year = 2026

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, "rate", self.rate, "above 0, to 1")

    def initial_state(self, setting: Setting) -> dict[str, Array]:
        return {"bias": jnp.zeros((setting.num_experts,), jnp.float32)}

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        scores = jax.nn.softmax(logits)
        bias = call.state["bias"]
        fixed = jax.lax.stop_gradient(scores)
        _, expert = best_choices(fixed - bias[None, None], call.k)
        weight = jnp.take_along_axis(scores, expert, axis=-1)
        if call.k > 1:
            weight = weight / (weight.sum(axis=-1, keepdims=True) + 1e-20)
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight, requested, call.num_experts, call.capacity)
        return assignment, {"quantile_bias": mean_of_parts(quantile_bias(fixed, tokens.valid, bias, call.k))}

    def next_state(
        self, state: Mapping[str, Array], metrics: Mapping[str, Array], setting: Setting
    ) -> Mapping[str, Array]:
        return {"bias": state["bias"] + self.rate * (metrics["quantile_bias"] - state["bias"])}
