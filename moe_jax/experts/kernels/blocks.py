"""Grouped products for any platform: a loop over blocks of rows, each with one expert's matrix.

A rows sorted by expert, E experts, M and N widths, R rows of a block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.kernel import of_sorted_rows

# Large enough that a product is worth starting, small enough that the last block of an expert wastes little.
BLOCK = 128


def _product(
    x: Float[Array, "A M"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], transposed: bool
) -> Float[Array, "A N"]:
    """Multiplies block by block; a block that reaches into the next expert's rows is overwritten by that expert's."""
    expert, first = _blocks(sizes, x.shape[0])
    padded = jnp.pad(x, ((0, BLOCK), (0, 0)))

    def multiply(i: Int[Array, ""], y: Float[Array, "_ N"]) -> Float[Array, "_ N"]:
        rows = jax.lax.dynamic_slice_in_dim(padded, first[i], BLOCK)
        matrix = w[expert[i]].T if transposed else w[expert[i]]
        return jax.lax.dynamic_update_slice_in_dim(y, rows @ matrix, first[i], 0)

    y = jnp.zeros_like(padded, shape=(padded.shape[0], w.shape[1 if transposed else 2]))
    return jax.lax.fori_loop(0, _count(sizes), multiply, y)[: x.shape[0]]


def _outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    """Adds the outer product of each block to the sum of its expert, in place."""
    expert, first = _blocks(sizes, x.shape[0])
    ends = jnp.cumsum(sizes)
    x, y = (jnp.pad(rows, ((0, BLOCK), (0, 0))) for rows in (x, y))

    def add(i: Int[Array, ""], total: Float[Array, "E M N"]) -> Float[Array, "E M N"]:
        mine = first[i] + jnp.arange(BLOCK) < ends[expert[i]]
        left = jax.lax.dynamic_slice_in_dim(x, first[i], BLOCK)
        right = jax.lax.dynamic_slice_in_dim(y, first[i], BLOCK)
        left, right = (jnp.where(mine[:, None], rows, jnp.zeros((), rows.dtype)) for rows in (left, right))
        return total.at[expert[i]].add(left.T @ right)

    total = jnp.zeros_like(x, shape=(sizes.shape[0], x.shape[1], y.shape[1]))
    return jax.lax.fori_loop(0, _count(sizes), add, total)


def _blocks(sizes: Int[Array, " E"], rows: int) -> tuple[Int[Array, " _"], Int[Array, " _"]]:
    """Lists the expert and the first row of each block, for the largest number of blocks that `rows` can need."""
    experts = sizes.shape[0]
    most = max(1, min(rows, experts) + rows // BLOCK)
    counts = -(-sizes // BLOCK)
    expert = jnp.repeat(jnp.arange(experts, dtype=jnp.int32), counts, total_repeat_length=most)
    before = (jnp.cumsum(counts) - counts)[expert]
    start = (jnp.cumsum(sizes) - sizes)[expert]
    return expert, start + (jnp.arange(most, dtype=jnp.int32) - before) * BLOCK


def _count(sizes: Int[Array, " E"]) -> Int[Array, ""]:
    """Counts the blocks."""
    return (-(-sizes // BLOCK)).sum()


BLOCKS = of_sorted_rows(_product, _outer)
