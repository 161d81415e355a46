"""ST-MoE's top-n routing: the best expert is always asked, the others by chance when their weight is small.

Zoph et al. 2022, appendix D and section 3; n = 2 with `threshold` 0.2 is mesh-tensorflow's top-2.

G groups, S tokens of a group, E experts, K choices per token, C capacity.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.capacity import Priority
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import decided


@typed
def top_n(
    logits: Float[Array, "G S E"],
    token_valid: Bool[Array, "G S"],
    capacity: int,
    n: int,
    threshold: float,
    priority: Priority,
    rng: Key[Array, ""],
) -> Assignment:
    """Routes each token to its n best experts with renormalised weights, or for n = 1 the plain probability.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      capacity: C.
      n: K.
      threshold: all but the first choice are asked with probability min(1, weight / threshold); 0 asks always.
      priority: order of seating; `batch` is batch-prioritised routing.
      rng: key for the draws.
    """
    probability, expert = best_choices(jax.nn.softmax(logits), n)
    weight = probability / (probability.sum(axis=-1, keepdims=True) + 1e-9) if n > 1 else probability
    asks = decided(jax.random.uniform(rng, weight.shape, jnp.float32) * threshold < weight)
    requested = token_valid[..., None] & asks.at[..., 0].set(True)
    return assign_choices(expert, weight, requested, logits.shape[-1], capacity, priority, probability)


@dataclasses.dataclass(frozen=True)
class STMoE(Router):
    """ST-MoE's top-k router with its balance loss and z-loss.

    Attributes:
      threshold: weight from which on a choice after the first is always asked; see `top_n`.
      priority: order of seating; see `top_n`.
    """

    threshold: float = 0.2
    priority: Priority = "position"

    losses: ClassVar[Mapping[str, float]] = {"balance_loss": 0.01, "z_loss": 0.001}
    paper = "Zoph et al. 2022, ST-MoE, arXiv:2202.08906"
    year = 2022

    def causal(self, setting: Setting) -> bool:
        return self.priority == "position" or setting.capacity_factor is None

    def __post_init__(self) -> None:
        require(self.threshold >= 0, "threshold", self.threshold, "a number of at least 0")

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        assignment = top_n(logits, tokens.valid, call.capacity, call.k, self.threshold, self.priority, call.rng())
        expert = assignment.expert.reshape(logits.shape[0], call.k, -1).transpose(0, 2, 1)
        return assignment, {"balance_loss": call.balance_loss(jax.nn.softmax(logits), expert, tokens)}
