"""What a kernel of grouped matrix products is: three products that know nothing of gradients.

T tokens, A rows sorted by expert, E experts, M and N widths.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from moe_jax.experts.permutation import take_rows
from moe_jax.native.sorting import NOWHERE


@struct.dataclass
class Groups:
    """Rows sorted by expert.

    Attributes:
      sizes: how many rows each expert has; rows past the last are nobody's.
      token: the token that each row is of, NOWHERE past the last; None where rows are themselves what is run.
      row: the rows of each token, filled up with NOWHERE; None where their number is not known, or with `token` None.
      num_tokens: T (static); None with `token` None.
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
      product: (x [T, M], w [E, M, N], groups, transposed) -> [A, N]: x[token[a]] @ w[expert of a], zeros for rows past
        the last; `transposed`: w is [E, N, M].
      product_sum: (xs, each [A, M], ws, each [E, M, N], groups, transposed) -> [T, N]: the sum of x[a] @ w[expert of a]
        over the rows a of each token, and over pairs of x and w.
      outer: (x, y, groups, x_by_token, y_by_token) -> [E, M, N]: the sum of x[a]^T y[a] over the rows a of each expert,
        exactly zero where it has none; x is [A, M] or, by token, [T, M], of which token[a] is meant; y likewise.
    """

    product: Callable[[Float[Array, "T M"], Float[Array, "E _ _"], Groups, bool], Float[Array, "A N"]]
    product_sum: Callable[
        [Sequence[Float[Array, "A _"]], Sequence[Float[Array, "E _ _"]], Groups, bool], Float[Array, "T N"]
    ]
    outer: Callable[[Float[Array, "_ M"], Float[Array, "_ N"], Groups, bool, bool], Float[Array, "E M N"]]


def of_sorted_rows(
    product: Callable[[Float[Array, "A M"], Float[Array, "E _ _"], Int[Array, " E"], bool], Float[Array, "A N"]],
    outer: Callable[[Float[Array, "A M"], Float[Array, "A N"], Int[Array, " E"]], Float[Array, "E M N"]],
) -> Kernel:
    """A kernel made of products of rows that lie in order: copies tokens there, and sums rows by gathering them.

    The last argument of `product` is `transposed`, as for a kernel: who can reads the matrices as they lie.
    What `product` gives for rows past the last does not matter, nor what `outer` gives for empty groups.
    """

    def gathered(x: Float[Array, "_ M"], groups: Groups, by_token: bool) -> Float[Array, "A M"]:
        """In order, with zeros past the last row, whatever is there: 0 * NaN would be NaN."""
        rows = take_rows(x, groups.token) if by_token else x
        inside = jnp.arange(rows.shape[0]) < groups.sizes.sum()
        return jnp.where(inside[:, None], rows, jnp.zeros((), x.dtype))

    def multiply(
        x: Float[Array, "_ M"], w: Float[Array, "E _ _"], groups: Groups, by_token: bool, transposed: bool
    ) -> Float[Array, "A N"]:
        y = product(gathered(x, groups, by_token), w, groups.sizes, transposed)
        inside = jnp.arange(y.shape[0]) < groups.sizes.sum()
        return jnp.where(inside[:, None], y, jnp.zeros((), y.dtype))

    def product_of_tokens(x: Array, w: Array, groups: Groups, transposed: bool) -> Array:
        return multiply(x, w, groups, groups.token is not None, transposed)

    def product_sum(xs: Sequence[Array], ws: Sequence[Array], groups: Groups, transposed: bool) -> Array:
        first, *others = (multiply(x, w, groups, False, transposed) for x, w in zip(xs, ws, strict=True))
        return sum_by_token(sum(others, start=first), groups)

    def outer_of_tokens(x: Array, y: Array, groups: Groups, x_by_token: bool, y_by_token: bool) -> Array:
        w = outer(gathered(x, groups, x_by_token), gathered(y, groups, y_by_token), groups.sizes)
        return jnp.where((groups.sizes > 0)[:, None, None], w, jnp.zeros((), w.dtype))

    return Kernel(product_of_tokens, product_sum, outer_of_tokens)


def sum_by_token(rows: Float[Array, "A N"], groups: Groups) -> Float[Array, "T N"]:
    """The sum of each token's rows; the rows themselves where they are of no tokens."""
    if groups.token is None:
        return rows
    if groups.row is None:
        target = jnp.where(groups.token == NOWHERE, groups.num_tokens, groups.token)
        return jnp.zeros((groups.num_tokens, rows.shape[1]), rows.dtype).at[target].add(rows, mode="drop")
    total = take_rows(rows, groups.row[:, 0])
    for r in range(1, groups.row.shape[1]):
        total += take_rows(rows, groups.row[:, r])
    return total
