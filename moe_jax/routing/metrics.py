"""One vocabulary of routing numbers, the same for every router. G groups, S tokens, E experts, A assignments."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.losses import masked_mean


def assignment_metrics(assignment: Assignment, token_valid: Bool[Array, "G S"]) -> dict[str, Float[Array, "..."]]:
    """What can be said of any decision.

    Returns:
      those of `load_metrics`, of the requested assignments, before any is dropped.
      fraction_dropped: share of the requested assignments that got no seat.
      tokens_unrouted: share of the valid tokens that no expert runs.
      seats_filled: share of all seats that are taken.
    """
    experts = assignment.num_experts
    requested = assignment.requested.astype(jnp.float32)
    kept = assignment.kept.astype(jnp.float32)
    asked = jnp.zeros(experts, jnp.float32).at[assignment.expert].add(requested)
    runs = assignment.dispatch_mask().any(axis=-1)
    return load_metrics(asked) | {
        "fraction_dropped": (requested.sum() - kept.sum()) / jnp.maximum(requested.sum(), 1.0),
        "tokens_unrouted": masked_mean((~runs).astype(jnp.float32), token_valid),
        "seats_filled": kept.sum() / (assignment.num_groups * experts * assignment.capacity),
    }


def load_metrics(asked: Float[Array, " E"]) -> dict[str, Float[Array, "..."]]:
    """What can be said of how much each expert is asked for.

    Returns:
      load: Float[E], each expert's share.
      load_max_over_mean: the fullest expert's load over the mean load; 1 at balance, E at collapse.
      load_cv: standard deviation of the load over its mean; 0 at balance.
      load_gini: mean difference between two experts' loads over twice the mean load; 0 at balance, 1 - 1/E at collapse.
      dead_experts: share of the experts that nothing asks for.
    """
    experts = asked.shape[0]
    load = asked / jnp.maximum(asked.sum(), jnp.finfo(jnp.float32).tiny)
    return {
        "load": load,
        "load_max_over_mean": load.max() * experts,
        "load_cv": load.std() * experts,
        "load_gini": jnp.abs(load[:, None] - load[None]).mean() * experts / 2,
        "dead_experts": jnp.mean(asked == 0, dtype=jnp.float32),
    }


def probability_metrics(
    probabilities: Float[Array, "G S E"], token_valid: Bool[Array, "G S"]
) -> dict[str, Float[Array, ""]]:
    """What can be said of a router's probabilities.

    Returns:
      entropy: mean entropy of a token's probabilities, in nats; ln E when the router does not care.
      confidence: mean of a token's largest probability.
    """
    log_probabilities = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1)
    return {
        "entropy": masked_mean(entropy, token_valid),
        "confidence": masked_mean(probabilities.max(axis=-1), token_valid),
    }
