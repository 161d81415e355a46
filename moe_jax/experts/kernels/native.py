"""The kernel for CPUs, in C++: float32 products as fast as one large product, however rows are divided over experts.

It reads tokens, and sums results, where they lie: neither is copied in sorted order.

T tokens, A rows sorted by expert, E experts, M and N widths.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.kernel import Kernel, RowLayout
from moe_jax.native.library import call


def _product(
    x: Float[Array, "T M"], w: Float[Array, "E _ _"], layout: RowLayout, transposed: bool
) -> Float[Array, "A N"]:
    index = _index(layout.token)
    rows = x.shape[0] if layout.token is None else index.shape[0]
    name = "product_transposed" if transposed else "product"
    shape = rows, w.shape[1 if transposed else 2]
    return _floats(name, shape, x.dtype, x, w, layout.sizes, index)


def _product_sum(
    xs: Sequence[Float[Array, "A _"]], ws: Sequence[Float[Array, "E _ _"]], layout: RowLayout, transposed: bool
) -> Float[Array, "T N"]:
    rows = xs[0].shape[0] if layout.token is None else layout.num_tokens
    name = "product_sum_transposed" if transposed else "product_sum"
    shape = rows, ws[0].shape[1 if transposed else 2]
    pairs = [factor for pair in zip(xs, ws, strict=True) for factor in pair]
    return _floats(name, shape, xs[0].dtype, layout.sizes, _index(layout.token), *pairs)


def _outer(
    x: Float[Array, "_ M"], y: Float[Array, "_ N"], layout: RowLayout, x_by_token: bool, y_by_token: bool
) -> Float[Array, "E M N"]:
    shape = layout.sizes.shape[0], x.shape[1], y.shape[1]
    index = [_index(layout.token if by_token else None) for by_token in (x_by_token, y_by_token)]
    return _floats("outer", shape, x.dtype, x, y, layout.sizes, *index)


NATIVE = Kernel(_product, _product_sum, _outer)


def _index(token: Int[Array, " A"] | None) -> Int[Array, " _"]:
    """Returns the index of rows that a handler takes; an empty one stands for all rows in order."""
    return jnp.zeros(0, jnp.int32) if token is None else token


def _floats(name: str, shape: tuple[int, ...], dtype: Any, *operands: Array) -> Float[Array, "..."]:
    """Calls a handler, which computes in float32 and reads int32, and returns its result as `dtype`."""
    wide = [x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32) for x in operands]
    (result,) = call(name, [(shape, jnp.float32)], *wide)
    return result.astype(dtype)
