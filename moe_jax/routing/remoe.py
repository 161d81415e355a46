"""ReMoE: experts with a positive logit run, and a loss keeps their number near k (Wang et al. 2024).

G groups, S tokens of a group, E experts, C capacity, P parts of the batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.losses import LossLevel, over_parts
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics, mean_where
from moe_jax.runtime.remat import decided


def loaded_weight(
    load: Float[Array, "P E"], weight: Float[Array, "P E"], tokens: Float[Array, " P"]
) -> Float[Array, " P"]:
    """Computes for each part the sum over experts of mean load * mean weight, from sums over the part's tokens."""
    return jnp.sum(load * weight, axis=-1) / jnp.maximum(tokens, 1.0) ** 2


@dataclasses.dataclass(frozen=True)
class ReMoE(Router):
    """ReLU routing: differentiable everywhere, with another number of experts for each token, `k` on average.

    The sparsity loss is the sum over experts of mean weight * load relative to an even load, times a coefficient. The
    coefficient lives in the collection `router_state`. Each step multiplies or divides it by `growth`, so that the
    share of experts that run stays near k / E (section 3.3).

    Attributes:
      growth: factor of the coefficient in a step.
      start: first value of the coefficient.
    """

    growth: float = 1.2
    start: float = 1e-8

    own_loss_level: ClassVar[LossLevel] = "batch"
    drops = False
    losses: ClassVar[Mapping[str, float]] = {"sparsity_loss": 1.0, "z_loss": 0.0}
    paper = "Wang et al. 2024, ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing, arXiv:2412.14711"
    year = 2024

    def __post_init__(self) -> None:
        require(self.growth > 1, "growth", self.growth, "a number above 1")
        require(self.start > 0, "start", self.start, "a positive number")

    def initial_state(self, setting: Setting) -> dict[str, Array]:
        return {"coefficient": jnp.full((), self.start, jnp.float32)}

    def probabilities(self, logits: Float[Array, "G S E"], call: Call) -> Float[Array, "G S E"]:
        weights = jax.nn.relu(logits)
        return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-20)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        weight = jax.nn.relu(logits)
        runs = decided((logits > 0) & tokens.valid[..., None])
        expert = jnp.broadcast_to(jnp.arange(call.num_experts, dtype=jnp.int32)[None, None], logits.shape)
        assignment = assign_choices(expert, weight, runs, call.num_experts, call.capacity)
        weights, running, valid = (call.by_part(x, tokens) for x in (weight, runs, tokens.valid))
        load = running.sum(axis=1, dtype=jnp.float32) * (call.num_experts / call.k)
        total = call.state["coefficient"] * jnp.sum(jnp.where(valid[..., None], weights, 0.0), axis=1)
        sums = load, total, valid.sum(axis=1, dtype=jnp.float32)
        share = mean_where(runs.mean(axis=-1, dtype=jnp.float32), tokens.valid)
        penalty = over_parts(sums, loaded_weight, valid.any(axis=1), call.loss_level)
        return assignment, {"sparsity_loss": penalty, "active_share": share}

    def next_state(
        self, state: Mapping[str, Array], metrics: Mapping[str, Array], setting: Setting
    ) -> Mapping[str, Array]:
        too_many = jnp.sign(metrics["active_share"] - setting.k / setting.num_experts)
        return {"coefficient": state["coefficient"] * self.growth**too_many}
