"""Losses of a routing decision, and the update of a selection bias that takes a loss's place.

A loss is computed in each part of the batch and averaged over the parts that have a valid token. The parts are groups
(tokens that share a capacity), sequences, or the whole batch.

G groups, S tokens of a group, E experts, K choices per token; in a loss's arguments G parts and S tokens of a part.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.routing.statistics import Statistic, mean_where
from moe_jax.runtime.arguments import typed

LossLevel = Literal["group", "sequence", "batch"]


def regroup(x: Shaped[Array, "G S ..."], level: LossLevel, sequence_length: int | None) -> Shaped[Array, "P N ..."]:
    """Regroups values of tokens by the parts of the batch; tokens are consecutive in both groups and parts.

    Args:
      x: values by group.
      level: kind of part.
      sequence_length: N for `sequence`; None where groups are sequences.
    """
    if level == "batch":
        return x.reshape(1, -1, *x.shape[2:])
    if level == "sequence" and sequence_length is not None:
        return x.reshape(-1, sequence_length, *x.shape[2:])
    return x


@typed
def balance_loss(
    probabilities: Float[Array, "G S E"],
    expert: Int[Array, "G S K"],
    token_valid: Bool[Array, "G S"],
    level: LossLevel = "group",
) -> Statistic:
    """Computes the balance loss, the mean over parts of E * sum_e f_e * P_e (Switch Transformer, equations 4 to 6).

    f_e is the share of the part's choices that fall on expert e, before any is dropped, so it sums to 1 for every K.
    P_e is the mean router probability of e. Padding counts in neither. The loss is 1 at balance, and E / K when all
    tokens choose the same K experts. Parts without a valid token do not count.

    Args:
      probabilities: softmax of the router's logits.
      expert: the choices that count.
      token_valid: false for padding.
      level: kind of part.
    """
    valid = token_valid.astype(jnp.float32)
    chosen = jax.nn.one_hot(expert, probabilities.shape[-1], dtype=jnp.float32).sum(axis=2)
    choices = jnp.einsum("gse,gs->ge", chosen, valid)
    probability = jnp.einsum("gse,gs->ge", probabilities, valid)
    return over_parts((choices, probability, valid.sum(axis=1)), imbalance, valid.any(axis=1), level)


def imbalance(
    choices: Float[Array, "G E"], probability: Float[Array, "G E"], tokens: Float[Array, " G"]
) -> Float[Array, " G"]:
    """Computes E * sum_e f_e * P_e of each part from sums over its tokens."""
    share = choices / jnp.maximum(choices.sum(axis=-1, keepdims=True), 1.0)
    mean_probability = probability / jnp.maximum(tokens, 1.0)[:, None]
    return choices.shape[-1] * jnp.sum(share * mean_probability, axis=-1)


@typed
def over_parts(
    sums: tuple[Float[Array, "G ..."], ...],
    loss: Callable[..., Float[Array, " G"]],
    counts: Bool[Array, " G"],
    level: LossLevel,
) -> Statistic:
    """Returns the mean over parts of a loss that is a function of sums over the tokens of a part.

    At level `batch` the sums of several devices or micro-batches add up before the loss is computed.

    Args:
      sums: sums over the tokens of each part.
      loss: computes the loss of each part.
      counts: false for parts without a valid token.
      level: kind of part.
    """
    if level == "batch":
        return Statistic(sums, _of_one_part(loss))
    return mean_where(loss(*sums), counts)


@functools.cache
def _of_one_part(loss: Callable[..., Float[Array, " G"]]) -> Callable[..., Float[Array, ""]]:
    """Makes `loss` a function of one part; cached, because a statistic's function is part of its type."""

    def finish(*sums: Float[Array, "1 ..."]) -> Float[Array, ""]:
        return loss(*sums)[0]

    return finish


def squared_variation(totals: Float[Array, "G E"]) -> Float[Array, " G"]:
    """Computes the squared coefficient of variation over experts (Shazeer et al. 2017, section 4, equations 7 and 11).

    It is the loss on importance and on load: 0 at balance, E - 1 when one expert has all.
    """
    mean = totals.mean(axis=-1)
    return jnp.var(totals, axis=-1) / (mean**2 + 1e-10)


@typed
def variation_loss(
    amounts: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], level: LossLevel = "group"
) -> Statistic:
    """Computes the mean over parts of the `squared_variation` of the experts' total amounts.

    Args:
      amounts: amount that each token gives each expert: its weight (importance), or the probability that it would be
        sent there (load).
      token_valid: false for padding.
      level: kind of part.
    """
    totals = jnp.sum(jnp.where(token_valid[..., None], amounts, 0.0), axis=1)
    return over_parts((totals,), squared_variation, token_valid.any(axis=1), level)


def updated_bias(bias: Float[Array, " E"], load: Float[Array, " E"], rate: float) -> Float[Array, " E"]:
    """Moves a selection bias up for experts below the mean load and down for those above it; keeps its mean at 0.

    Loss-free balancing (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2).

    Args:
      bias: bias before the step.
      load: requests for each expert, before any is dropped, over all the step's data; on any scale.
      rate: change in a step.
    """
    moved = bias + rate * jnp.sign(load.mean() - load)
    return moved - moved.mean()


@typed
def z_loss(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"]) -> Statistic:
    """Computes the mean over valid tokens of the squared log-sum-exp of the router's logits (ST-MoE, equation 5)."""
    return mean_where(jax.nn.logsumexp(logits, axis=-1) ** 2, token_valid)
