"""Copies of rows by an index, whose gradients are gathers too.

N rows in, M rows out, R copies of a row, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.native.sorting import NOWHERE


def take_rows(x: Float[Array, "N D"], index: Int[Array, " M"]) -> Float[Array, "M D"]:
    """Returns out[m] = x[index[m]], zeros where index[m] is NOWHERE."""
    rows = x.at[index].get(mode="clip")
    return jnp.where((index == NOWHERE)[:, None], jnp.zeros((), x.dtype), rows)


@jax.custom_vjp
def permute_rows(x: Float[Array, "N D"], index: Int[Array, " M"], inverse: Int[Array, "N R"]) -> Float[Array, "M D"]:
    """Returns `take_rows(x, index)`; its gradient is a gather, where that of indexing is a scatter-add of rows.

    Args:
      x: rows.
      index: for each row out, the row in that it copies; NOWHERE for zeros.
      inverse: for each row in, all rows out that copy it, filled up with NOWHERE.
    """
    del inverse
    return take_rows(x, index)


def _forward(x: Array, index: Array, inverse: Array) -> tuple[Array, Array]:
    return take_rows(x, index), inverse


def _backward(inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    total = take_rows(gradient, inverse[:, 0])
    for r in range(1, inverse.shape[1]):
        total += take_rows(gradient, inverse[:, r])
    return total, None, None


permute_rows.defvjp(_forward, _backward)


def invert(index: Int[Array, " M"], size: int) -> Int[Array, " size"]:
    """Finds, for each n below `size`, the m with index[m] = n; NOWHERE if there is none.

    Args:
      index: numbers below `size`, or NOWHERE; no number twice.
      size: length of the result.
    """
    targets = jnp.where(index == NOWHERE, size, index)
    empty = jnp.full(size, NOWHERE, jnp.int32)
    return empty.at[targets].set(jnp.arange(index.shape[0], dtype=jnp.int32), mode="drop")
