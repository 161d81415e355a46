"""The mixture of 1991, in which every expert runs every token (Jacobs et al.), and its three losses.

T cases, G groups, S tokens of a group, E experts, C capacity, O outputs.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.router import Call, Router, Tokens
from moe_jax.routing.statistics import Metrics


def cooperative_loss(
    outputs: Float[Array, "T E O"], gate: Float[Array, "T E"], target: Float[Array, "T O"]
) -> Float[Array, ""]:
    """Computes the mean of ||target - sum_e gate_e output_e||^2 (equation 1.1): experts make up for one another."""
    mixed = jnp.einsum("te,teo->to", gate, outputs)
    return jnp.mean(jnp.sum((target - mixed) ** 2, axis=-1))


def competitive_loss(
    outputs: Float[Array, "T E O"], gate: Float[Array, "T E"], target: Float[Array, "T O"]
) -> Float[Array, ""]:
    """Computes the mean of sum_e gate_e ||target - output_e||^2 (equation 1.2): each expert stands for itself."""
    errors = jnp.sum((target[:, None] - outputs) ** 2, axis=-1)
    return jnp.mean(jnp.sum(gate * errors, axis=-1))


def likelihood_loss(
    outputs: Float[Array, "T E O"], gate: Float[Array, "T E"], target: Float[Array, "T O"]
) -> Float[Array, ""]:
    """Computes the mean of -log sum_e gate_e exp(-||target - output_e||^2 / 2) (equation 1.3), the paper's own.

    It is the negative log-likelihood of a mixture of Gaussians of unit variance, without its constant. Unlike the
    competitive loss, it adapts the expert fastest that already fits best.
    """
    errors = jnp.sum((target[:, None] - outputs) ** 2, axis=-1)
    return -jnp.mean(jax.nn.logsumexp(-errors / 2, axis=-1, b=gate))


@dataclasses.dataclass(frozen=True)
class DenseMixture(Router):
    """Jacobs' mixture: a softmax over all experts, which all run every token; `k` is E."""

    choices_allowed = "all"
    drops = False
    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {"z_loss": 0.0}
    paper = "Jacobs et al. 1991, Adaptive Mixtures of Local Experts, Neural Computation 3(1)"
    year = 1991

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        expert = jnp.broadcast_to(jnp.arange(call.num_experts, dtype=jnp.int32)[None, None], logits.shape)
        requested = jnp.broadcast_to(tokens.valid[..., None], logits.shape)
        return assign_choices(expert, jax.nn.softmax(logits), requested, call.num_experts, call.capacity), {}
