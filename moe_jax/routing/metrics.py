"""Metrics of routing, the same for every router. G groups, S tokens, E experts."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.routing.statistics import Statistic, mean_where
from moe_jax.runtime.arguments import typed


def load_metrics(asked: Float[Array, " E"]) -> dict[str, Statistic]:
    """Returns the metrics of a load, the requests for each expert.

    Returns:
      load: Float[E], each expert's share.
      load_max_over_mean: the largest load over the mean load; 1 at balance, E at collapse.
      load_cv: standard deviation of the load over its mean; 0 at balance.
      load_gini: mean difference between two experts' loads over twice the mean load; 0 at balance, 1 - 1/E at collapse.
      dead_experts: share of the experts with load 0.
    """
    numbers = {
        "load": load,
        "load_max_over_mean": max_over_mean,
        "load_cv": variation,
        "load_gini": gini,
        "dead_experts": dead,
    }
    return {name: Statistic((asked,), number) for name, number in numbers.items()}


def load(asked: Float[Array, " E"]) -> Float[Array, " E"]:
    """Computes each expert's share of the requests."""
    return asked / jnp.maximum(asked.sum(), jnp.finfo(jnp.float32).tiny)


def max_over_mean(asked: Float[Array, " E"]) -> Float[Array, ""]:
    """Computes the largest load over the mean load."""
    return load(asked).max() * asked.shape[0]


def variation(asked: Float[Array, " E"]) -> Float[Array, ""]:
    """Computes the standard deviation of the load over its mean."""
    return load(asked).std() * asked.shape[0]


def gini(asked: Float[Array, " E"]) -> Float[Array, ""]:
    """Computes the mean difference between two loads over twice the mean load."""
    share = load(asked)
    return jnp.abs(share[:, None] - share[None]).mean() * asked.shape[0] / 2


def dead(asked: Float[Array, " E"]) -> Float[Array, ""]:
    """Computes the share of the experts with load 0."""
    return jnp.mean(asked == 0, dtype=jnp.float32)


@typed
def probability_metrics(probabilities: Float[Array, "G S E"], token_valid: Bool[Array, "G S"]) -> dict[str, Statistic]:
    """Returns the metrics of a router's probabilities.

    Returns:
      entropy: mean entropy of a token's probabilities, in nats; ln E when they are all equal.
      confidence: mean of a token's largest probability.
    """
    log_probabilities = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1)
    return {
        "entropy": mean_where(entropy, token_valid),
        "confidence": mean_where(probabilities.max(axis=-1), token_valid),
    }
