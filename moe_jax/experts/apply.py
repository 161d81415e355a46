"""How an assignment's weights are applied: to an expert's output, to its input, or as a share of expert and token.

G groups, S tokens of a group, A assignments of a group, D model width, O width of results (D, but of linear experts).
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.run import Execution, make_execution
from moe_jax.routing.assignment import Assignment

Combine = Literal["output", "input", "mix"]


def apply_experts(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    execution: str,
    combine: Combine = "output",
    kernel: KernelChoice = "auto",
) -> Float[Array, "G S O"]:
    """Runs the kept assignments a of each token t and sums what they give.

    Args:
      x: tokens.
      assignment: who runs whom.
      weights: the experts'.
      kind: what they compute.
      execution: a name in EXECUTIONS.
      combine: `output`: weight[a] * expert(x[t]), a mixture. `input`: expert(weight[a] * x[t]), Llama 4's. `mix`:
        weight[a] * expert(x[t]) + (1 - weight[a]) * x[t], BASE layers', so that a token without an expert gets zeros.
      kernel: of grouped products; see `choose_kernel`.
    """
    return apply_with(make_execution(execution, kernel), x, assignment, weights, kind, combine)


def apply_with(
    run: Execution,
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    combine: Combine,
) -> Float[Array, "G S O"]:
    """`apply_experts` with any function that runs experts."""
    if combine == "input":
        return _on_input(run, x, assignment, weights, kind)
    y = run(x, assignment, weights, kind)
    if combine == "output":
        return y
    kept = assignment.kept.astype(jnp.float32)
    own = _by_token(assignment, kept * (1.0 - assignment.weight))
    return y + own[..., None].astype(x.dtype) * x


def _on_input(
    run: Execution, x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind
) -> Float[Array, "G S O"]:
    """Each assignment becomes a token of its own, already weighted, with weight 1."""
    scale = assignment.weight[..., None].astype(x.dtype)
    rows = jnp.take_along_axis(x, assignment.token[..., None], axis=1) * scale
    count = assignment.token.shape[1]
    alone = assignment.replace(
        token=jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), assignment.token.shape),
        weight=jnp.ones_like(assignment.weight),
        num_tokens=count,
        choices=1,
    )
    outputs = run(rows, alone, weights, kind)
    return _by_token(assignment, outputs)


def _by_token(assignment: Assignment, values: Float[Array, "G A ..."]) -> Float[Array, "G S ..."]:
    """Sums values of assignments over the assignments of each token."""
    group = jnp.arange(assignment.num_groups)[:, None]
    shape = (assignment.num_groups, assignment.num_tokens, *values.shape[2:])
    return jnp.zeros(shape, values.dtype).at[group, assignment.token].add(values)
