"""Expert choice: each expert takes the tokens it scores highest (Zhou et al. 2022, section 3).

G groups, S tokens of a group, E experts, C capacity, A = E * C assignments.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import shard_over_groups
from moe_jax.runtime.remat import decided

Among = Literal["group", "seen"]


@typed
def expert_choice(
    logits: Float[Array, "G S E"],
    token_valid: Bool[Array, "G S"],
    capacity: int,
    most: int | None = None,
    entropy: float = 0.01,
    iterations: int = 100,
) -> Assignment:
    """Lets each expert take its C best tokens of the group, by softmax over experts, without renormalising.

    The load is even. Any number of experts, or none, may take a token. An expert takes fewer than C tokens only if
    fewer are valid.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      capacity: C.
      most: experts that should take one token at most, by `capped_plan`; None does not limit.
      entropy: see `capped_plan`.
      iterations: see `capped_plan`.
    """
    groups, tokens, num_experts = logits.shape
    probabilities = jax.nn.softmax(logits)
    ranking = probabilities
    if most is not None:
        ranking = capped_plan(probabilities, token_valid, capacity, most, entropy, iterations)
    scores = jnp.where(token_valid[..., None], ranking, -1.0).transpose(0, 2, 1)
    best = shard_over_groups(lambda scores: jax.lax.top_k(scores, capacity)[1].astype(jnp.int32))
    token = decided(best(jax.lax.stop_gradient(scores)))
    at_tokens = shard_over_groups(lambda values, token: jnp.take_along_axis(values, token, axis=-1))
    weight = at_tokens(probabilities.transpose(0, 2, 1), token)
    requested = at_tokens(jnp.broadcast_to(token_valid[:, None], scores.shape), token)
    expert = jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32)[None, :, None], token.shape)
    seat = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), token.shape)

    def flat(x: Array) -> Array:
        return x.reshape(groups, num_experts * capacity)

    return Assignment(
        token=flat(token),
        expert=flat(expert),
        weight=flat(weight),
        requested=flat(requested),
        seat=flat(seat),
        capacity=capacity,
        num_tokens=tokens,
        num_experts=num_experts,
        choices=None,
    )


@typed
def capped_plan(
    scores: Float[Array, "G S E"],
    token_valid: Bool[Array, "G S"],
    capacity: int,
    most: int,
    entropy: float,
    iterations: int,
) -> Float[Array, "G S E"]:
    """Computes the plan A in [0, 1] that maximises sum(scores * A) + entropy * H(A) (Zhou et al., section 3.3).

    Each expert gives out C in all, each token receives at most `most`. Dykstra's projections onto the three constraints
    run in turn, in logarithms. As in the paper, they stop after `iterations`, whether they have converged or not. Less
    entropy needs more: with the paper's 0.001, its 100 iterations stay far above the cap, and 1000 do not.

    Args:
      scores: gain of each expert by each token.
      token_valid: false for padding, where the logarithm is -inf.
      capacity: C.
      most: experts per token.
      entropy: softness of the plan.
      iterations: rounds of the three projections.

    Returns:
      the logarithm of the plan.
    """
    valid = token_valid[..., None]
    rows = jnp.log(jnp.minimum(capacity, token_valid.sum(axis=1)).astype(jnp.float32))[:, None, None]
    start = jnp.where(valid, jax.lax.stop_gradient(scores) / entropy, -jnp.inf)
    zeros = jnp.zeros_like(start)

    def subtract(x: Array, y: Array) -> Array:
        return jnp.where(valid, x - y, 0.0)

    def project(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        plan, token_dual, one_dual = carry
        # An expert's total is an equality, whose projection needs no correction.
        plan = plan + subtract(rows, jax.nn.logsumexp(plan, axis=1, keepdims=True))
        corrected = plan + token_dual
        excess = jax.nn.logsumexp(corrected, axis=2, keepdims=True) - math.log(most)
        plan = corrected - jnp.where(valid, jnp.maximum(excess, 0.0), 0.0)
        token_dual = subtract(corrected, plan)
        corrected = plan + one_dual
        plan = jnp.minimum(corrected, 0.0)
        return plan, token_dual, subtract(corrected, plan)

    plan, _, _ = jax.lax.fori_loop(0, iterations, project, (start, zeros, zeros))
    return plan


@typed
def expert_choice_seen(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int) -> Assignment:
    """Lets an expert take a token that is among the best of those seen so far, as a causal model may.

    Of the first n valid tokens of a group an expert's share is C * n / S, rounded. The expert takes the n-th token if
    fewer earlier tokens than this share score as high. That is nearly C tokens on average; an expert that has taken C
    takes no more.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      capacity: C.
    """
    _, tokens, num_experts = logits.shape
    probabilities = jax.nn.softmax(logits)
    scores = jax.lax.stop_gradient(jnp.where(token_valid[..., None], probabilities, -1.0))
    earlier = jnp.tril(jnp.ones((tokens, tokens), bool), -1)
    as_high = (scores[:, None] >= scores[:, :, None]) & earlier[None, :, :, None]
    quota = (2 * jnp.cumsum(token_valid, axis=1) * capacity + tokens) // (2 * tokens)
    takes = decided(token_valid[..., None] & (as_high.sum(axis=2) < quota[..., None]))
    expert = jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32)[None, None], logits.shape)
    return assign_choices(expert, probabilities, takes, num_experts, capacity)


@dataclasses.dataclass(frozen=True)
class ExpertChoice(Router):
    """Expert choice: experts pick tokens; `k` is the mean number of experts per token.

    With capacity_factor=1 `k` is the paper's capacity factor. No balance loss is needed. A causal model leaks: whether
    an expert takes a token depends on later tokens, unless experts choose among those `seen`.

    Attributes:
      among: tokens among which experts choose: those of the `group`, or those `seen` so far.
      most: experts per token at most, among the tokens of a group; None does not limit.
      entropy: softness of the plan that keeps to `most`; see `capped_plan`.
      iterations: rounds in which that plan is sought.
    """

    among: Among = "group"
    most: int | None = None
    entropy: float = 0.01
    iterations: int = 100

    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {"z_loss": 0.0}
    paper = "Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, arXiv:2202.09368"
    year = 2022

    def causal(self, setting: Setting) -> bool:
        return self.among == "seen"

    def chooses_by_capacity(self, setting: Setting) -> bool:
        return True

    def __post_init__(self) -> None:
        require(self.entropy > 0, "entropy", self.entropy, "a positive number")
        require(self.iterations >= 1, "iterations", self.iterations, "an integer of at least 1")
        require(self.most is None or self.among == "group", "most", self.most, "None, among the tokens seen")

    def check(self, setting: Setting) -> None:
        k, experts = setting.k, setting.num_experts
        require(
            self.most is None or k <= self.most <= experts, "most", self.most, f"k ({k}) to num_experts ({experts})"
        )

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        if self.among == "seen":
            return expert_choice_seen(logits, tokens.valid, call.capacity), {}
        return expert_choice(logits, tokens.valid, call.capacity, self.most, self.entropy, self.iterations), {}
