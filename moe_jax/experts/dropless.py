"""Experts as grouped matrix products over assignments sorted by expert: no seats, hence no capacity.

G groups, S tokens of a group, A assignments of a group, K choices per token, E experts, D model width, O output width
(D; F for linear experts), T = G * S, M = G * A.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.dispatch import global_token, rows_of_tokens
from moe_jax.experts.execution import Execution, Work
from moe_jax.experts.ffn import FFNKind, FFNParams, Products, feed_forward
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.kernels.grouped_matmul import into_experts, out_of_experts
from moe_jax.experts.kernels.kernel import RowLayout
from moe_jax.experts.permutation import permute_rows, take_rows
from moe_jax.native.sorting import NOWHERE, counting_sort
from moe_jax.routing.assignment import Assignment


def dropless(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    kernel: KernelChoice = "auto",
) -> Float[Array, "G S O"]:
    """Runs exactly the kept assignments: with `capacity_factor=None`, all that the router requested.

    Args:
      x: tokens.
      assignment: the assignments.
      params: parameters of the experts.
      kind: the network that an expert is.
      kernel: kernel of the grouped products; see `choose_kernel`.
    """
    row, source, sizes = _sorted(assignment)
    token = jnp.where(source == NOWHERE, NOWHERE, global_token(assignment).reshape(-1)[source])
    by_token = None if assignment.choices is None else rows_of_tokens(row, assignment.choices)
    layout = RowLayout(sizes, token, by_token, assignment.num_groups * assignment.num_tokens)
    row_weight = permute_rows(assignment.weight.reshape(-1, 1), source, row.reshape(-1, 1))[:, 0]

    def rows(x: Float[Array, "T D"]) -> Float[Array, "M D"]:
        return take_rows(x, token) if by_token is None else permute_rows(x, token, by_token)

    products = Products(
        rows,
        functools.partial(into_experts, layout=layout, kernel=kernel),
        functools.partial(out_of_experts, layout=layout, kernel=kernel),
    )
    y = feed_forward(x.reshape(-1, x.shape[-1]), params, kind, products, row_weight)
    return y.reshape(*x.shape[:2], -1)


def sorted_rows(assignment: Assignment) -> tuple[Int[Array, "G A"], Int[Array, " E"]]:
    """Sorts the kept assignments by expert.

    Returns:
      The row of each assignment, NOWHERE if it is not kept, and the number of rows of each expert.
    """
    row, _, sizes = _sorted(assignment)
    return row, sizes


def _sorted(assignment: Assignment) -> tuple[Int[Array, "G A"], Int[Array, " M"], Int[Array, " E"]]:
    """Sorts as `sorted_rows`; between its results also gives the assignment at each row."""
    expert = jnp.where(assignment.kept, assignment.expert, NOWHERE).reshape(-1)
    row, source, sizes = counting_sort(expert, assignment.num_experts)
    return row.reshape(assignment.kept.shape), source, sizes


def _flops_per_token(work: Work) -> float:
    """Counts an expert for every choice, as if nothing was dropped."""
    return float(work.choices * work.expert_flops)


DROPLESS = Execution(dropless, _flops_per_token, has_kernels=True)
