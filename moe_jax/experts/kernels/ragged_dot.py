"""Grouped products by an operation of XLA, `jax.lax.ragged_dot`.

A rows sorted by expert, E experts, M and N widths.
"""

import jax
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.kernel import of_sorted_rows

_CONTRACT_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


def _product(
    x: Float[Array, "A M"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], transposed: bool
) -> Float[Array, "A N"]:
    return jax.lax.ragged_dot(x, w.swapaxes(1, 2) if transposed else w, sizes)


def _outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    return jax.lax.ragged_dot_general(x, y, sizes, _CONTRACT_ROWS)


RAGGED_DOT = of_sorted_rows(_product, _outer)
