"""Capacity: seats of each expert, and the order in which assignments get them.

G groups, S tokens of a group, A assignments of a group, E experts, K choices per token, C capacity.
"""

import math
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.configuration import require, require_name
from moe_jax.native.sorting import rank_within_key
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import shard_over_groups

# `mesh_tensorflow` is the rule of the code that trained GShard and Switch Transformer.
CapacityRule = Literal["ceil", "mesh_tensorflow"]
# The order among choices of one rank; all first choices come before any second choice.
Priority = Literal["position", "probability", "batch"]


def capacity_per_expert(
    capacity_factor: float | None, tokens: int, k: int, num_experts: int, rule: CapacityRule = "ceil"
) -> int:
    """Computes C, the seats of each expert in a group of S tokens, never more than S.

    Args:
      capacity_factor: seats relative to even load; None gives every expert a seat for every token.
      tokens: S.
      k: experts per token.
      num_experts: E.
      rule: `ceil`: C = ceil(capacity_factor * S * k / E). `mesh_tensorflow`: C = min(S, max(4, int(capacity_factor *
        S / E))), without k, so its top-2 models set twice the factor.

    Raises:
      ConfigError: the capacity would be 0.
    """
    require_name(rule, get_args(CapacityRule), "capacity_rule")
    if capacity_factor is None:
        return tokens
    if rule == "mesh_tensorflow":
        return min(max(int(tokens * capacity_factor / num_experts), 4), tokens)
    # Rounded first: 1.1 * 10 is 11.000000000000002 in binary, and that is not 12 seats.
    capacity = min(math.ceil(round(capacity_factor * tokens * k / num_experts, 6)), tokens)
    require(
        capacity >= 1,
        "capacity_factor",
        capacity_factor,
        f"a factor that gives each of {num_experts} experts at least one seat for {tokens} tokens with k={k}",
    )
    return capacity


@typed
def seats_by_position(expert: Int[Array, "G A"], requested: Bool[Array, "G A"], num_experts: int) -> Int[Array, "G A"]:
    """Returns each assignment's seat: the number of earlier requests for its expert in its group."""

    def count(expert: Int[Array, "G A"], requested: Bool[Array, "G A"]) -> Int[Array, "G A"]:
        return rank_within_key(expert, requested, num_experts)

    return shard_over_groups(count)(expert, requested)


@typed
def seats_by_score(
    expert: Int[Array, "G S K"],
    requested: Bool[Array, "G S K"],
    score: Float[Array, "G S K"],
    num_experts: int,
) -> Int[Array, "G S K"]:
    """Returns each choice's seat where, among choices of one rank, a larger `score` comes first.

    Where scores tie, the earlier token comes first.
    """

    def seat(
        expert: Int[Array, "G S K"], requested: Bool[Array, "G S K"], score: Float[Array, "G S K"]
    ) -> Int[Array, "G S K"]:
        order = jnp.argsort(-score, axis=1, stable=True)

        def in_order(x: Shaped[Array, "G S K"]) -> Shaped[Array, "G A"]:
            return jnp.take_along_axis(x, order, axis=1).transpose(0, 2, 1).reshape(x.shape[0], -1)

        seats = seats_by_position(in_order(expert), in_order(requested), num_experts)
        groups, tokens, choices = expert.shape
        place = jnp.argsort(order, axis=1)
        return jnp.take_along_axis(seats.reshape(groups, choices, tokens).transpose(0, 2, 1), place, axis=1)

    return shard_over_groups(seat)(expert, requested, score)
