"""Every router as one function of logits, for tests that hold whatever the router."""

from collections.abc import Callable

import jax

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import capacity_per_expert
from moe_jax.routing.expert_choice import expert_choice
from moe_jax.routing.gshard import gshard
from moe_jax.routing.switch import switch
from moe_jax.routing.uniform_random import uniform_random

RNG = jax.random.key(7)

# name -> (experts per token, or None for any; decision on logits, token_valid, capacity and k).
DECISIONS: dict[str, tuple[int | None, Callable[..., Assignment]]] = {
    "switch": (1, lambda logits, valid, capacity, k: switch(logits, valid, capacity)),
    "gshard_all": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "all")),
    "gshard_none": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "none")),
    "gshard_threshold": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "threshold", 0.3)),
    "gshard_random": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "random", 0.5, RNG)),
    "expert_choice": (None, lambda logits, valid, capacity, k: expert_choice(logits, valid, capacity)),
    "uniform_random": (
        None,
        lambda logits, valid, capacity, k: uniform_random(valid, capacity, logits.shape[-1], k, RNG),
    ),
}


def decide(
    name: str, logits: jax.Array, token_valid: jax.Array, capacity_factor: float | None, k: int | None = None
) -> Assignment:
    """The decision of the router `name`; k is the router's own where it allows only one."""
    only, decision = DECISIONS[name]
    k = only or k or 1
    capacity = capacity_per_expert(capacity_factor, logits.shape[1], k, logits.shape[2])
    return decision(logits, token_valid, capacity, k)
