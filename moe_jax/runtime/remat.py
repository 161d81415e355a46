"""Rematerialisation: names for the values that are saved when a block is recomputed in the backward pass."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

# Routing decisions are always saved: a recomputed top-k could break a tie in another way.
ROUTING_DECISION = "routing_decision"
# Values that a configuration may save too, and what they are.
SAVEABLE: dict[str, str] = {
    "attention_heads": "queries, keys and values",
    "attention_mixed": "weighted sums of values in attention, before they are normalised",
    "ffn_inner": "the first products of feed-forward layers and experts",
    "ffn_hidden": "their hidden values, which enter the second products",
}


def decided(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Names `x` a routing decision, which is always saved."""
    return checkpoint_name(x, ROUTING_DECISION)


def saveable(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """Names `x` so that a configuration can save it.

    Raises:
      KeyError: `name` is not in SAVEABLE.
    """
    if name not in SAVEABLE:
        raise KeyError(f"{name!r} is none of {', '.join(SAVEABLE)}")
    return checkpoint_name(x, name)


def saves_only(*names: str) -> Callable[..., Any]:
    """Returns the policy that saves routing decisions and the values named, and recomputes all else."""
    return jax.checkpoint_policies.save_only_these_names(ROUTING_DECISION, *names)
