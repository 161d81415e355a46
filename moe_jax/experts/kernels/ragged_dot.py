"""Grouped products by XLA's own operation, `jax.lax.ragged_dot`.

A rows sorted by expert, E experts, M and N widths.
"""

import jax
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.kernel import of_sorted_rows

_CONTRACT_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


def _outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    return jax.lax.ragged_dot_general(x, y, sizes, _CONTRACT_ROWS)


RAGGED_DOT = of_sorted_rows(jax.lax.ragged_dot, _outer)
