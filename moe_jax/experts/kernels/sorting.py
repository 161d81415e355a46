"""Rows in order of expert: a sort of few keys, by counting where there is a kernel for it.

A assignments, E experts.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_jax.experts.kernels.native import kernel as native
from moe_jax.experts.permutation import NOWHERE, invert


def sort_by_expert(
    expert: Int[Array, " A"], num_experts: int, kernel: str
) -> tuple[Int[Array, " A"], Int[Array, " A"], Int[Array, " E"]]:
    """Row of each assignment, assignment of each row, both NOWHERE where there is none, and rows of each expert.

    Args:
      expert: of each assignment; NOWHERE for one that gets no row.
      num_experts: E.
      kernel: that the rows are for, a name in KERNELS.
    """
    if kernel == "native":
        return native.sort_rows(expert, num_experts)
    key = jnp.where(expert == NOWHERE, num_experts, expert)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(key, length=num_experts + 1)[:num_experts].astype(jnp.int32)
    order = jnp.where(jnp.arange(order.size) < sizes.sum(), order, NOWHERE)
    return invert(order, order.size), order, sizes
