"""Noisy top-k gating (Shazeer et al. 2017), and V-MoE's variant (Riquelme et al. 2021).

G groups, S tokens of a group, D model width, E experts, K choices per token, C capacity.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.capacity import Priority
from moe_jax.routing.losses import LossLevel
from moe_jax.routing.router import Call, Router, Setting, Tokens, exact_matmul, whole
from moe_jax.routing.statistics import Metrics, sum_of_parts
from moe_jax.runtime.mesh import shard_over_groups
from moe_jax.runtime.parameters import Parameter

# The metric of each expert's expected load over draws of the noise, for two-level routing.
EXPECTED_LOAD = "expected_load"


def chance_in_top_k(
    clean: Float[Array, "G S E"], noisy: Float[Array, "G S E"], scale: Float[Array, "#G #S #E"], k: int
) -> Float[Array, "G S E"]:
    """Computes the probability that an expert is in the top k when its own noise is drawn again (equation 9).

    Args:
      clean: logits without noise.
      noisy: logits with the noise that was drawn.
      scale: standard deviation of the noise.
      k: K, below E.
    """
    best, expert = shard_over_groups(lambda noisy: jax.lax.top_k(noisy, k + 1))(noisy)
    chosen = jax.nn.one_hot(expert[..., :k], noisy.shape[-1], dtype=jnp.int32).sum(axis=-2) > 0
    # The k-th largest of the others: for a chosen expert the (k+1)-th of all.
    threshold = jnp.where(chosen, best[..., k, None], best[..., k - 1, None])
    # A softplus can be 0 in float32, and the gradient divides by its square.
    return jax.scipy.stats.norm.cdf((clean - threshold) / jnp.maximum(scale, 1e-6))


def _counted(expert: Int[Array, "G S K"], num_experts: int) -> Float[Array, "G S E"]:
    return jax.nn.one_hot(expert, num_experts, dtype=jnp.float32).sum(axis=-2)


@dataclasses.dataclass(frozen=True)
class NoisyTopK(Router):
    """Softmax over the k largest of logits with learned noise, which is drawn in training only.

    With k = 1 the softmax is over all experts: over one it would be the constant 1, and the router would learn nothing.
    Kernels start at zero, so that at first noise alone decides and the load is even. The load loss is of the expected
    load; in evaluation, or where all experts are chosen, of the choices.
    """

    own_loss_level: ClassVar[LossLevel] = "batch"
    losses: ClassVar[Mapping[str, float]] = {"importance_loss": 0.1, "load_loss": 0.1, "z_loss": 0.0}
    paper = "Shazeer et al. 2017, Outrageously Large Neural Networks, arXiv:1701.06538"
    year = 2017

    def parameters(self, model_dim: int, tokens: int, setting: Setting) -> dict[str, Parameter]:
        return dict.fromkeys(("kernel", "noise_kernel"), whole(model_dim, setting.num_experts))

    def initializer(self, name: str) -> nn.initializers.Initializer:
        return nn.initializers.zeros

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        scale = jax.nn.softplus(exact_matmul(tokens.x.astype(jnp.float32), call.params["noise_kernel"]))
        noisy = logits
        if call.training:
            noisy += scale * jax.random.normal(call.rng(), logits.shape, jnp.float32)
        chosen, expert = best_choices(noisy, call.k)
        among = chosen if call.k > 1 else noisy
        weight = jnp.exp(chosen - jax.nn.logsumexp(among, axis=-1, keepdims=True))
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight, requested, call.num_experts, call.capacity)
        gates = jnp.einsum("gsk,gske->gse", weight, jax.nn.one_hot(expert, call.num_experts, dtype=jnp.float32))
        if call.training and call.k < call.num_experts:
            load = chance_in_top_k(logits, noisy, scale, call.k)
        else:
            load = _counted(expert, call.num_experts)
        return assignment, {
            "importance_loss": call.variation_loss(gates, tokens),
            "load_loss": call.variation_loss(load, tokens),
            EXPECTED_LOAD: sum_of_parts(jnp.sum(jnp.where(tokens.valid[..., None], load, 0.0), axis=(0, 1))),
        }


@dataclasses.dataclass(frozen=True)
class VMoE(Router):
    """V-MoE: softmax of noisy logits, then the k largest, not renormalised, so that k = 1 can be trained.

    The noise has a fixed standard deviation of 1 / E, in training only. The load loss compares with the k-th largest
    noisy logit of all experts; Shazeer's leaves out the expert's own.

    Attributes:
      priority: order of seating; `batch` is the paper's batch-prioritised routing.
    """

    priority: Priority = "position"

    own_loss_level: ClassVar[LossLevel] = "batch"
    losses: ClassVar[Mapping[str, float]] = {"importance_loss": 0.005, "load_loss": 0.005, "z_loss": 0.0}
    paper = "Riquelme et al. 2021, Scaling Vision with Sparse Mixture of Experts, arXiv:2106.05974"
    year = 2021

    def causal(self, setting: Setting) -> bool:
        return self.priority == "position" or setting.capacity_factor is None

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        noisy, scale = logits, 1.0 / call.num_experts
        if call.training:
            noisy += scale * jax.random.normal(call.rng(), logits.shape, jnp.float32)
        weight, expert = best_choices(jax.nn.softmax(noisy), call.k)
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight, requested, call.num_experts, call.capacity, self.priority)
        if call.training:
            threshold = jnp.take_along_axis(noisy, expert[..., -1:], axis=-1)
            load = 1.0 - jax.scipy.stats.norm.cdf((threshold - logits) / scale)
        else:
            load = _counted(expert, call.num_experts)
        return assignment, {
            "importance_loss": call.variation_loss(jax.nn.softmax(logits), tokens),
            "load_loss": call.variation_loss(load, tokens),
        }
