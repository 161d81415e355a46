"""Losses of a routing decision, and the update of a selection bias that takes a loss's place.

A loss is computed in each part of the batch and averaged over the parts that have a valid token. The parts are groups
(of tokens that share a capacity), sequences, or the batch as one.

G groups, S tokens of a group, E experts, K choices per token; in a loss's arguments G parts and S their tokens.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.routing.statistics import Statistic, mean_where

LossLevel = Literal["group", "sequence", "batch"]


def regroup(x: Shaped[Array, "G S ..."], level: LossLevel, sequence_length: int | None) -> Shaped[Array, "P N ..."]:
    """Values of tokens by group as values by part; the tokens are consecutive ones of the batch in both.

    Args:
      x: by group.
      level: what the parts are.
      sequence_length: N for `sequence`; None where groups are sequences.
    """
    if level == "batch":
        return x.reshape(1, -1, *x.shape[2:])
    if level == "sequence" and sequence_length is not None:
        return x.reshape(-1, sequence_length, *x.shape[2:])
    return x


def balance_loss(
    probabilities: Float[Array, "G S E"],
    expert: Int[Array, "G S K"],
    token_valid: Bool[Array, "G S"],
    level: LossLevel = "group",
) -> Statistic:
    """Load-balance loss: mean over groups of E * sum_e f_e * P_e (Switch Transformer, equations 4 to 6).

    f_e is the share of the group's choices that fall on expert e, before any is dropped (so it sums to 1 for every K),
    and P_e the mean router probability of e; padding counts in neither. 1 at perfect balance, E / K when all tokens
    agree on the same K experts. Groups without a valid token do not count.

    Args:
      probabilities: softmax of the router's logits.
      expert: the choices that count.
      token_valid: false for padding.
      level: what the G parts are.
    """
    valid = token_valid.astype(jnp.float32)
    chosen = jax.nn.one_hot(expert, probabilities.shape[-1], dtype=jnp.float32).sum(axis=2)
    choices = jnp.einsum("gse,gs->ge", chosen, valid)
    probability = jnp.einsum("gse,gs->ge", probabilities, valid)
    return over_parts((choices, probability, valid.sum(axis=1)), imbalance, valid.any(axis=1), level)


def imbalance(
    choices: Float[Array, "G E"], probability: Float[Array, "G E"], tokens: Float[Array, " G"]
) -> Float[Array, " G"]:
    """E * sum_e f_e * P_e of each part, from sums over its tokens."""
    share = choices / jnp.maximum(choices.sum(axis=-1, keepdims=True), 1.0)
    mean_probability = probability / jnp.maximum(tokens, 1.0)[:, None]
    return choices.shape[-1] * jnp.sum(share * mean_probability, axis=-1)


def over_parts(
    sums: tuple[Float[Array, "G ..."], ...],
    loss: Callable[..., Float[Array, " G"]],
    counts: Bool[Array, " G"],
    level: LossLevel,
) -> Statistic:
    """The mean over parts of a loss of sums over their tokens; of the batch as one part, the loss of the batch's sums.

    Args:
      sums: by part.
      loss: of each part.
      counts: whether a part has anything in it.
      level: what the parts are.
    """
    if level == "batch":
        return Statistic(sums, _of_one_part(loss))
    return mean_where(loss(*sums), counts)


@functools.cache
def _of_one_part(loss: Callable[..., Float[Array, " G"]]) -> Callable[..., Float[Array, ""]]:
    """The same function for the same loss, because a statistic's function is part of its type."""

    def finish(*sums: Float[Array, "1 ..."]) -> Float[Array, ""]:
        return loss(*sums)[0]

    return finish


def squared_variation(totals: Float[Array, "G E"]) -> Float[Array, " G"]:
    """Squared coefficient of variation over experts: the loss on importance and on load of Shazeer et al. 2017.

    Section 4, equations 7 and 11. 0 at balance, E - 1 when one expert has all.
    """
    mean = totals.mean(axis=-1)
    return jnp.var(totals, axis=-1) / (mean**2 + 1e-10)


def variation_loss(
    amounts: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], level: LossLevel = "group"
) -> Statistic:
    """Mean over parts of the `squared_variation` of each expert's total amount.

    Args:
      amounts: what each token gives each expert: its weight (importance), or the probability that it would be sent
        there (load).
      token_valid: false for padding.
      level: what the parts are.
    """
    totals = jnp.sum(jnp.where(token_valid[..., None], amounts, 0.0), axis=1)
    return over_parts((totals,), squared_variation, token_valid.any(axis=1), level)


def updated_bias(bias: Float[Array, " E"], load: Float[Array, " E"], rate: float) -> Float[Array, " E"]:
    """A selection bias after a step: up where an expert has less than the mean load, down where more, mean kept at 0.

    Loss-free balancing (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2).

    Args:
      bias: before the step.
      load: what each expert was asked for, before dropping, over all the step's data; on any scale.
      rate: size of a step.
    """
    moved = bias + rate * jnp.sign(load.mean() - load)
    return moved - moved.mean()


def z_loss(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"]) -> Statistic:
    """Mean over valid tokens of the squared log-sum-exp of the router's logits (ST-MoE, equation 5)."""
    return mean_where(jax.nn.logsumexp(logits, axis=-1) ** 2, token_valid)
