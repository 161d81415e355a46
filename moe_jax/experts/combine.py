"""Combine modes: weights on an expert's output, on its input, or as a mix of output and token.

G groups, S tokens of a group, A assignments of a group, D model width, O output width (D; F for linear experts).
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.routing.assignment import Assignment

Combine = Literal["output", "input", "mix"]
"""The combine mode: where the weight of each kept assignment a of token t is applied.

`output`: weight[a] * expert(x[t]), a mixture of experts. `input`: expert(weight[a] * x[t]), Llama 4. `mix`:
weight[a] * expert(x[t]) + (1 - weight[a]) * x[t], BASE layers. The sum over a token's assignments is its
result; a token without any gets zeros.
"""


def before_experts(
    combine: Combine, x: Float[Array, "G S D"], assignment: Assignment
) -> tuple[Float[Array, "G _ D"], Assignment]:
    """Returns the rows that experts run and the assignment of these rows.

    With weights on the input, each assignment becomes a row of its own: the weighted token, with weight 1.
    """
    if combine != "input":
        return x, assignment
    scale = assignment.weight[..., None].astype(x.dtype)
    rows = jnp.take_along_axis(x, assignment.token[..., None], axis=1) * scale
    count = assignment.token.shape[1]
    return rows, assignment.replace(
        token=jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), assignment.token.shape),
        weight=jnp.ones_like(assignment.weight),
        num_tokens=count,
        choices=1,
    )


def after_experts(
    combine: Combine, y: Float[Array, "G _ O"], x: Float[Array, "G S D"], assignment: Assignment
) -> Float[Array, "G S O"]:
    """Returns the results of the tokens `x` from the results `y` of the rows of `before_experts`.

    Args:
      combine: the combine mode.
      y: results of the rows.
      x: the tokens.
      assignment: the assignment of the tokens.
    """
    if combine == "input":
        return _by_token(assignment, y)
    if combine == "output":
        return y
    kept = assignment.kept.astype(jnp.float32)
    own = _by_token(assignment, kept * (1.0 - assignment.weight))
    return y + own[..., None].astype(x.dtype) * x


def _by_token(assignment: Assignment, values: Float[Array, "G A ..."]) -> Float[Array, "G S ..."]:
    """Sums values of assignments over the assignments of each token."""
    group = jnp.arange(assignment.num_groups)[:, None]
    shape = (assignment.num_groups, assignment.num_tokens, *values.shape[2:])
    return jnp.zeros(shape, values.dtype).at[group, assignment.token].add(values)
