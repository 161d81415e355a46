"""Experts as grouped matrix products over assignments sorted by expert; no empty seats, so no capacity is needed.

G groups, S tokens of a group, A assignments of a group, K choices per token, E experts, D model width, O width of
results (D, but of linear experts), T = G * S, M = G * A.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.ffn import FFNKind, Products, Weights, feed_forward
from moe_jax.experts.kernels.choice import KernelChoice, choose_kernel
from moe_jax.experts.kernels.grouped_matmul import into_experts, out_of_experts
from moe_jax.experts.kernels.kernel import Groups
from moe_jax.experts.permutation import permute_rows, take_rows
from moe_jax.experts.placement import global_token, rows_of_tokens
from moe_jax.native.sorting import NOWHERE, counting_sort
from moe_jax.routing.assignment import Assignment


def dropless(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    kernel: KernelChoice = "auto",
) -> Float[Array, "G S O"]:
    """Runs exactly the kept assignments, grouped by expert; with capacity_factor=None that is every one requested."""
    kernel = choose_kernel(kernel)
    row, source, sizes = _sorted_rows(assignment)
    token = jnp.where(source == NOWHERE, NOWHERE, global_token(assignment).reshape(-1)[source])
    by_token = None if assignment.choices is None else rows_of_tokens(row, assignment.choices)
    groups = Groups(sizes, token, by_token, assignment.num_groups * assignment.num_tokens)
    row_weight = permute_rows(assignment.weight.reshape(-1, 1), source, row.reshape(-1, 1))[:, 0]

    def rows(x: Float[Array, "T D"]) -> Float[Array, "M D"]:
        return take_rows(x, token) if by_token is None else permute_rows(x, token, by_token)

    products = Products(
        rows,
        functools.partial(into_experts, groups=groups, kernel=kernel),
        functools.partial(out_of_experts, groups=groups, kernel=kernel),
    )
    y = feed_forward(x.reshape(-1, x.shape[-1]), weights, kind, products, row_weight)
    return y.reshape(*x.shape[:2], -1)


def sorted_places(assignment: Assignment) -> tuple[Int[Array, "G A"], Int[Array, " E"]]:
    """Row of each kept assignment in order of expert (NOWHERE for the others), and how many rows each expert has."""
    row, _, sizes = _sorted_rows(assignment)
    return row, sizes


def _sorted_rows(assignment: Assignment) -> tuple[Int[Array, "G A"], Int[Array, " M"], Int[Array, " E"]]:
    expert = jnp.where(assignment.kept, assignment.expert, NOWHERE).reshape(-1)
    row, source, sizes = counting_sort(expert, assignment.num_experts)
    return row.reshape(assignment.kept.shape), source, sizes
