"""Losses of a routing decision. G groups, S tokens of a group, E experts, K choices per token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def balance_loss(
    probabilities: Float[Array, "G S E"], expert: Int[Array, "G S K"], token_valid: Bool[Array, "G S"]
) -> Float[Array, ""]:
    """Load-balance loss: mean over groups of E * sum_e f_e * P_e (Switch Transformer, equations 4 to 6).

    f_e is the share of the group's choices that fall on expert e, before any is dropped (so it sums to 1 for every K),
    and P_e the mean router probability of e; padding counts in neither. 1 at perfect balance, E / K when all tokens
    agree on the same K experts. Groups without a valid token do not count.

    Args:
      probabilities: softmax of the router's logits.
      expert: the choices that count.
      token_valid: false for padding.
    """
    num_experts, choices = probabilities.shape[-1], expert.shape[-1]
    valid = token_valid.astype(jnp.float32)
    tokens = valid.sum(axis=1)
    divisor = jnp.maximum(tokens, 1.0)[:, None]
    chosen = jax.nn.one_hot(expert, num_experts, dtype=jnp.float32).sum(axis=2)
    share = jnp.einsum("gse,gs->ge", chosen, valid) / (divisor * choices)
    mean_probability = jnp.einsum("gse,gs->ge", probabilities, valid) / divisor
    per_group = num_experts * jnp.sum(share * mean_probability, axis=-1)
    return masked_mean(per_group, tokens > 0)


def z_loss(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"]) -> Float[Array, ""]:
    """Mean over valid tokens of the squared log-sum-exp of the router's logits (ST-MoE, equation 5)."""
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) ** 2, token_valid)


def masked_mean(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of `x` where `mask`; 0 where nothing is."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
