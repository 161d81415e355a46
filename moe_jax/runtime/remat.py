"""Rematerialisation: names of the values that are saved for the backward pass when blocks are recomputed."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

# Always saved, because a recomputed top-k could break ties in another way.
ROUTING_DECISION = "routing_decision"
# Values that a configuration may save, too.
SAVEABLE: dict[str, str] = {
    "attention_heads": "queries, keys and values",
    "attention_mixed": "attention's weighted sums of values, before they are normalised",
    "ffn_inner": "results of the first products of feed-forward layers and experts",
    "ffn_hidden": "inputs of their second products",
}


def decided(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Tags a routing decision, so that it is always saved."""
    return checkpoint_name(x, ROUTING_DECISION)


def saveable(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """Tags a value as one of SAVEABLE, so that a configuration can save it."""
    if name not in SAVEABLE:
        raise KeyError(f"name is {name!r}; accepted: {', '.join(SAVEABLE)}")
    return checkpoint_name(x, name)


def saves_only(*names: str) -> Callable[..., Any]:
    """Returns the policy that saves routing decisions and values of these names, and recomputes all others."""
    return jax.checkpoint_policies.save_only_these_names(ROUTING_DECISION, *names)
