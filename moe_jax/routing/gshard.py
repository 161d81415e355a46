"""GShard routing: each token asks its most probable expert, and sometimes the second one, too.

Lepikhin et al. 2020, algorithm 1; variants as in its authors' code, mesh-tensorflow.

G groups, S tokens of a group, E experts, C capacity.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from moe_jax.configuration import require, require_name
from moe_jax.routing.assignment import Assignment, assign_choices, top_experts
from moe_jax.routing.router import Call, Router, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import decided

SecondPolicy = Literal["all", "none", "threshold", "random"]


@typed
def gshard(
    logits: Float[Array, "G S E"],
    token_valid: Bool[Array, "G S"],
    capacity: int,
    second_policy: SecondPolicy = "all",
    second_threshold: float = 0.2,
    rng: Key[Array, ""] | None = None,
) -> Assignment:
    """Routes each token to its two best experts, with probabilities that sum to 1 before any is turned down or dropped.

    All first choices are seated before any second choice.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      capacity: C.
      second_policy: when the second expert is asked: `all` always, `none` never, `threshold` if its renormalised weight
        is above `second_threshold`, `random` with probability min(1, weight / second_threshold) (0.5 is the paper's).
      second_threshold: threshold of these two policies.
      rng: key for the draws of `random`.

    Raises:
      ConfigError: `random` has no key.
    """
    probabilities = jax.nn.softmax(logits)
    expert = decided(top_experts(probabilities, 2))
    weight = jnp.take_along_axis(probabilities, expert, axis=-1)
    weight = weight / (weight.sum(axis=-1, keepdims=True) + 1e-9)
    second = decided(_asks_second(weight[..., 1], second_policy, second_threshold, rng))
    requested = jnp.stack([token_valid, token_valid & second], axis=-1)
    return assign_choices(expert, weight, requested, logits.shape[-1], capacity)


def _asks_second(
    weight: Float[Array, "G S"], policy: SecondPolicy, threshold: float, rng: Key[Array, ""] | None
) -> Bool[Array, "G S"]:
    require_name(policy, get_args(SecondPolicy), "second_policy")
    if policy == "threshold":
        return weight > threshold
    if policy == "random":
        require(rng is not None, "rng", rng, "a key, for second_policy='random'")
        return jax.random.uniform(rng, weight.shape, jnp.float32) < weight / max(threshold, 1e-9)
    return jnp.full(weight.shape, policy == "all")


@dataclasses.dataclass(frozen=True)
class GShard(Router):
    """GShard's top-2 router; its balance loss counts first choices only, as its authors' does.

    Attributes:
      second_policy: when the second expert is asked; see `gshard`.
      second_threshold: threshold of the policies `threshold` and `random`.
      init_std: standard deviation of the projection at its start; see `Switch`.
    """

    second_policy: SecondPolicy = "random"
    second_threshold: float = 0.2
    init_std: float = 0.02

    choices_allowed = (2,)
    # The experts that a token asks for, and their weights, are causal. The seat of a second choice is not quite: first
    # choices of later tokens in its group are seated before it. GLaM trains decoders so; capacity_factor=None avoids
    # it. This holds for every router here that asks for several experts.
    paper = "Lepikhin et al. 2020, GShard, arXiv:2006.16668"
    year = 2020

    def __post_init__(self) -> None:
        require(self.init_std > 0, "init_std", self.init_std, "a positive number")

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        rng = call.rng() if self.second_policy == "random" else None
        assignment = gshard(logits, tokens.valid, call.capacity, self.second_policy, self.second_threshold, rng)
        first_choice = assignment.expert[:, : logits.shape[1], None]
        return assignment, {"balance_loss": call.balance_loss(jax.nn.softmax(logits), first_choice, tokens)}
