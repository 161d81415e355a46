"""The interface of kernels for grouped matrix products: three products, without gradients.

T tokens, A rows sorted by expert, E experts, K rows of a token, M and N widths.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from moe_jax.experts.permutation import sum_of_rows, take_rows
from moe_jax.native.sorting import NOWHERE


@struct.dataclass
class RowLayout:
    """Rows sorted by expert: how many each expert has, and the token that each row copies.

    Attributes:
      sizes: number of rows of each expert; rows past their sum belong to no expert.
      token: token of each row, NOWHERE for rows of no expert; None where rows are run themselves, without tokens.
      row: rows of each token, filled up with NOWHERE; None where tokens have any number of rows, or `token` is None.
      num_tokens: T (static); None where `token` is None.
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    sizes: Int[Array, " E"]
    token: Int[Array, " A"] | None = None
    row: Int[Array, "T K"] | None = None
    num_tokens: int | None = struct.field(pytree_node=False, default=None)


class Kernel(NamedTuple):
    """A way of computing grouped products.

    Attributes:
      product: (x [T, M], w [E, M, N], layout, transposed) -> [A, N]: x[token[a]] @ w[expert of a], zeros for rows of no
        expert; `transposed`: w is [E, N, M].
      product_sum: (xs, each [A, M], ws, each [E, M, N], layout, transposed) -> [T, N]: the sum of x[a] @ w[expert of a]
        over the rows a of each token, and over pairs of x and w.
      outer: (x, y, layout, x_by_token, y_by_token) -> [E, M, N]: the sum of x[a]^T y[a] over the rows a of each expert,
        exactly zero for an expert without rows. x is [A, M], or with `x_by_token` [T, M], and x[token[a]] is taken for
        x[a]; y likewise.
    """

    product: Callable[[Float[Array, "T M"], Float[Array, "E _ _"], RowLayout, bool], Float[Array, "A N"]]
    product_sum: Callable[
        [Sequence[Float[Array, "A _"]], Sequence[Float[Array, "E _ _"]], RowLayout, bool], Float[Array, "T N"]
    ]
    outer: Callable[[Float[Array, "_ M"], Float[Array, "_ N"], RowLayout, bool, bool], Float[Array, "E M N"]]


def of_sorted_rows(
    product: Callable[[Float[Array, "A M"], Float[Array, "E _ _"], Int[Array, " E"], bool], Float[Array, "A N"]],
    outer: Callable[[Float[Array, "A M"], Float[Array, "A N"], Int[Array, " E"]], Float[Array, "E M N"]],
) -> Kernel:
    """Makes a kernel from products of sorted rows: it copies tokens to rows before them, and sums rows after them.

    Args:
      product: (x [A, M], w [E, M, N], sizes, transposed) -> [A, N]. Its results for rows of no expert do not matter.
      outer: (x [A, M], y [A, N], sizes) -> [E, M, N]. Its results for experts without rows do not matter.
    """

    def gathered(x: Float[Array, "_ M"], layout: RowLayout, by_token: bool) -> Float[Array, "A M"]:
        """Sorts rows, with zeros for those of no expert, whatever they hold: 0 * NaN would be NaN."""
        rows = take_rows(x, layout.token) if by_token else x
        inside = jnp.arange(rows.shape[0]) < layout.sizes.sum()
        return jnp.where(inside[:, None], rows, jnp.zeros((), x.dtype))

    def multiply(
        x: Float[Array, "_ M"], w: Float[Array, "E _ _"], layout: RowLayout, by_token: bool, transposed: bool
    ) -> Float[Array, "A N"]:
        y = product(gathered(x, layout, by_token), w, layout.sizes, transposed)
        inside = jnp.arange(y.shape[0]) < layout.sizes.sum()
        return jnp.where(inside[:, None], y, jnp.zeros((), y.dtype))

    def product_of_tokens(x: Array, w: Array, layout: RowLayout, transposed: bool) -> Array:
        return multiply(x, w, layout, layout.token is not None, transposed)

    def product_sum(xs: Sequence[Array], ws: Sequence[Array], layout: RowLayout, transposed: bool) -> Array:
        first, *others = (multiply(x, w, layout, False, transposed) for x, w in zip(xs, ws, strict=True))
        return sum_by_token(sum(others, start=first), layout)

    def outer_of_tokens(x: Array, y: Array, layout: RowLayout, x_by_token: bool, y_by_token: bool) -> Array:
        w = outer(gathered(x, layout, x_by_token), gathered(y, layout, y_by_token), layout.sizes)
        return jnp.where((layout.sizes > 0)[:, None, None], w, jnp.zeros((), w.dtype))

    return Kernel(product_of_tokens, product_sum, outer_of_tokens)


def sum_by_token(rows: Float[Array, "A N"], layout: RowLayout) -> Float[Array, "T N"]:
    """Sums the rows of each token; returns the rows themselves if the layout has no tokens."""
    if layout.token is None:
        return rows
    if layout.row is None:
        target = jnp.where(layout.token == NOWHERE, layout.num_tokens, layout.token)
        return jnp.zeros((layout.num_tokens, rows.shape[1]), rows.dtype).at[target].add(rows, mode="drop")
    return sum_of_rows(rows, layout.row)
