"""How many seats an expert has. S tokens of a group, E experts, K choices per token, C capacity."""

import math

from moe_jax.configuration import require


def capacity_per_expert(capacity_factor: float | None, tokens: int, k: int, num_experts: int) -> int:
    """C = ceil(capacity_factor * S * k / E) seats per expert in a group of S tokens, and never more than S.

    Args:
      capacity_factor: seats relative to even load; None gives every expert a seat for every token.
      tokens: S.
      k: experts per token.
      num_experts: E.

    Raises:
      ConfigError: a capacity of 0.
    """
    if capacity_factor is None:
        return tokens
    # Rounded first: 1.1 * 10 is 11.000000000000002 in binary, and that is not 12 seats.
    capacity = min(math.ceil(round(capacity_factor * tokens * k / num_experts, 6)), tokens)
    require(
        capacity >= 1,
        "model.moe.capacity_factor",
        capacity_factor,
        f"a factor that gives each of {num_experts} experts at least one seat for {tokens} tokens with k={k}",
    )
    return capacity
