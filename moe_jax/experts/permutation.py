"""Copies of rows by an index, whose gradients are gathers too.

N rows in, M rows out, R copies of a row, C rows in that a row out sums, D width.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array, Float, Int

from moe_jax.native.sorting import NOWHERE
from moe_jax.runtime.mesh import vary_alike
from moe_jax.runtime.operation import Results, operation


def take_rows(x: Float[Array, "N D"], index: Int[Array, " M"]) -> Float[Array, "M D"]:
    """Returns out[m] = x[index[m]], zeros where index[m] is NOWHERE."""
    rows = x.at[index].get(mode="clip")
    return jnp.where((index == NOWHERE)[:, None], jnp.zeros((), x.dtype), rows)


def permute_rows(x: Float[Array, "N D"], index: Int[Array, " M"], inverse: Int[Array, "N R"]) -> Float[Array, "M D"]:
    """Returns `take_rows(x, index)`; its gradient is a gather, where that of indexing is a scatter-add of rows.

    Args:
      x: rows.
      index: for each row out, the row in that it copies; NOWHERE for zeros.
      inverse: for each row in, all rows out that copy it, filled up with NOWHERE.
    """
    return _sum_rows(*vary_alike((x, index[:, None], inverse)))


def sum_of_rows(x: Float[Array, "N D"], index: Int[Array, "M C"]) -> Float[Array, "M D"]:
    """Returns the sum of x[index[m, c]] over c, without what is NOWHERE."""
    total = take_rows(x, index[:, 0])
    for c in range(1, index.shape[1]):
        total += take_rows(x, index[:, c])
    return total


def _sum_rows(x: Any, index: Any, inverse: Any) -> Array:
    (total,) = _SUM_ROWS.bind(x, index, inverse)
    return total


def _run(platform: str, x: Any, index: Any, inverse: Any) -> list[Array]:
    del platform, inverse
    return [sum_of_rows(x, index)]


def _results(x: Any, index: Any, inverse: Any) -> Results:
    return [((index.shape[0], x.shape[1]), x.dtype)]


def _batch(operands: Sequence[Any], axes: Sequence[int | None]) -> tuple[list[Array], list[int]]:
    """Makes the rows of all members of a batch those of one operation."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    x, index, inverse = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    )

    def joined(index: Any, rows: int) -> Array:
        start = rows * jnp.arange(size, dtype=index.dtype)[:, None, None]
        return jnp.where(index == NOWHERE, NOWHERE, index + start).reshape(-1, index.shape[2])

    total = _sum_rows(x.reshape(-1, x.shape[2]), joined(index, x.shape[1]), joined(inverse, index.shape[1]))
    return [total.reshape(*index.shape[:2], -1)], [0]


_SUM_ROWS = operation("sum_rows", _run, _results, _batch)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    x, index, inverse = primals
    total = _sum_rows(x, index, inverse)
    if type(tangents[0]) is ad.Zero:
        return [total], [ad.Zero(jax.typeof(total).to_tangent_aval())]
    return [total], [_sum_rows(tangents[0], index, inverse)]


def _transpose(cotangents: Sequence[Any], x: Any, index: Any, inverse: Any) -> list[Any]:
    (cotangent,) = cotangents
    return [None if type(cotangent) is ad.Zero else _sum_rows(cotangent, inverse, index), None, None]


ad.primitive_jvps[_SUM_ROWS] = _jvp
ad.primitive_transposes[_SUM_ROWS] = _transpose


def invert(index: Int[Array, " M"], size: int) -> Int[Array, " size"]:
    """Finds, for each n below `size`, the m with index[m] = n; NOWHERE if there is none.

    Args:
      index: numbers below `size`, or NOWHERE; no number twice.
      size: length of the result.
    """
    targets = jnp.where(index == NOWHERE, size, index)
    empty = jnp.full(size, NOWHERE, jnp.int32)
    return empty.at[targets].set(jnp.arange(index.shape[0], dtype=jnp.int32), mode="drop")
