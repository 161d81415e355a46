"""Dispatch and combine: tokens to rows in the experts' order and back, given the row of each assignment.

G groups, S tokens of a group, A assignments of a group, K choices per token, D model width, M rows, T = G * S.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.permutation import invert, permute_rows, take_rows
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment


def dispatch_rows(
    x: Float[Array, "G S D"], assignment: Assignment, row: Int[Array, "G A"], num_rows: int
) -> Float[Array, "M D"]:
    """Copies each assignment's token to its row.

    Args:
      x: tokens.
      assignment: the assignments.
      row: the row of each assignment; NOWHERE for none.
      num_rows: M. Rows without an assignment are zeros.
    """
    tokens = x.reshape(-1, x.shape[-1])
    assignment_at = invert(row.reshape(-1), num_rows)
    token_at = jnp.where(assignment_at == NOWHERE, NOWHERE, global_token(assignment).reshape(-1)[assignment_at])
    if assignment.choices is None:
        return take_rows(tokens, token_at)
    return permute_rows(tokens, token_at, rows_of_tokens(row, assignment.choices))


def combine_rows(rows: Float[Array, "M D"], assignment: Assignment, row: Int[Array, "G A"]) -> Float[Array, "G S D"]:
    """Sums, for each token, the rows of its assignments times their weights.

    Args:
      rows: results of the experts.
      assignment: the assignments.
      row: the row of each assignment; one at NOWHERE contributes nothing.
    """
    groups, tokens = assignment.num_groups, assignment.num_tokens
    flat = row.reshape(-1)
    outputs = permute_rows(rows, flat, invert(flat, rows.shape[0])[:, None]).reshape(*row.shape, -1)
    outputs = outputs * jnp.where(assignment.kept, assignment.weight, 0.0)[..., None].astype(rows.dtype)
    if assignment.choices is None:
        zeros = jnp.zeros((groups * tokens, rows.shape[-1]), rows.dtype)
        summed = zeros.at[global_token(assignment)].add(outputs)
        return summed.reshape(groups, tokens, -1)
    return outputs.reshape(groups, assignment.choices, tokens, -1).sum(axis=1)


def global_token(assignment: Assignment) -> Int[Array, "G A"]:
    """Returns the number of each assignment's token within the whole batch, from 0 to T - 1."""
    group = jnp.arange(assignment.num_groups, dtype=jnp.int32)[:, None]
    return group * assignment.num_tokens + assignment.token


def rows_of_tokens(row: Int[Array, "G A"], choices: int) -> Int[Array, "T K"]:
    """Lists each token's K = `choices` rows, from the rows of choice-major assignments."""
    groups = row.shape[0]
    return row.reshape(groups, choices, -1).transpose(0, 2, 1).reshape(-1, choices)
