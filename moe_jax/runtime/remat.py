"""What the backward pass finds saved where blocks are otherwise recomputed, by name."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

# Who runs what: a recomputed top-k could break a tie in another way, so this is saved always.
ROUTING_DECISION = "routing_decision"
# What a configuration may save besides.
SAVEABLE: dict[str, str] = {
    "attention_heads": "queries, keys and values",
    "attention_mixed": "the sum of values that attention weighs, before it is normalised",
    "ffn_inner": "the first products of feed-forward layers and experts",
    "ffn_hidden": "what their second products are of",
}


def decided(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Names a routing decision."""
    return checkpoint_name(x, ROUTING_DECISION)


def saveable(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """Names a value, one of SAVEABLE, for a configuration to save."""
    if name not in SAVEABLE:
        raise KeyError(f"{name!r} is none of {', '.join(SAVEABLE)}")
    return checkpoint_name(x, name)


def saves_only(*names: str) -> Callable[..., Any]:
    """The policy that saves routing decisions and values of these names, and recomputes all else."""
    return jax.checkpoint_policies.save_only_these_names(ROUTING_DECISION, *names)
