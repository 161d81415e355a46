"""Grouped products as operations that JAX differentiates to any order, forwards and backwards.

Each product is linear in both of its factors, and the gradient of each is one of the three products again:
x [T, M] -> rows [A, N], rows [A, N] -> tokens [T, M], and their outer products [E, M, N].

T tokens, A rows sorted by expert, E experts, M and N widths.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad
from jaxtyping import Array, Float

from moe_jax.experts.kernels.choice import KERNELS, KernelChoice, choose_kernel
from moe_jax.experts.kernels.kernel import Kernel, RowLayout
from moe_jax.runtime.operation import Results, operation


def into_rows(
    x: Float[Array, "T _"],
    ws: Sequence[Float[Array, "E _ _"]],
    layout: RowLayout,
    kernel: KernelChoice,
    transposed: bool = False,
) -> list[Float[Array, "A _"]]:
    """Computes `Kernel.product` of x with each of the matrices."""
    return _bind(_INTO, (x, *ws), layout, kernel=kernel, transposed=transposed)


def out_of_rows(
    xs: Sequence[Float[Array, "A _"]],
    ws: Sequence[Float[Array, "E _ _"]],
    layout: RowLayout,
    kernel: KernelChoice,
    transposed: bool = False,
) -> Float[Array, "T _"]:
    """Computes `Kernel.product_sum`."""
    (y,) = _bind(_OUT, (*xs, *ws), layout, kernel=kernel, transposed=transposed)
    return y


def outer_of_rows(
    x: Float[Array, "_ M"], y: Float[Array, "_ N"], layout: RowLayout, kernel: KernelChoice, tokens: str
) -> Float[Array, "E M N"]:
    """Computes `Kernel.outer`; `tokens` says which factor is of tokens, `x` or `y`, where the layout has any."""
    (w,) = _bind(_OUTER, (x, y), layout, kernel=kernel, tokens=tokens)
    return w


def _bind(primitive: Primitive, factors: Sequence[Any], layout: RowLayout, **static: Any) -> list[Array]:
    leaves, tree = jax.tree.flatten(layout)
    return primitive.bind(*factors, *leaves, tree=tree, **static)


def _parts(operands: Sequence[Any], tree: Any) -> tuple[Sequence[Any], RowLayout]:
    """Divides operands into factors and the layout."""
    count = len(operands) - tree.num_leaves
    return operands[:count], jax.tree.unflatten(tree, operands[count:])


def _kernel(name: KernelChoice, platform: str) -> Kernel:
    return KERNELS[choose_kernel(name, platform)]


def _run_into(
    platform: str, *operands: Any, kernel: KernelChoice, transposed: bool, tree: Any
) -> list[Float[Array, "A _"]]:
    (x, *ws), layout = _parts(operands, tree)
    return [_kernel(kernel, platform).product(x, w, layout, transposed) for w in ws]


def _into_results(*operands: Any, kernel: KernelChoice, transposed: bool, tree: Any) -> Results:
    (x, *ws), layout = _parts(operands, tree)
    rows = (x if layout.token is None else layout.token).shape[0]
    return [((rows, w.shape[1 if transposed else 2]), x.dtype) for w in ws]


def _run_out(
    platform: str, *operands: Any, kernel: KernelChoice, transposed: bool, tree: Any
) -> list[Float[Array, "T _"]]:
    factors, layout = _parts(operands, tree)
    xs, ws = _halves(factors)
    return [_kernel(kernel, platform).product_sum(xs, ws, layout, transposed)]


def _out_results(*operands: Any, kernel: KernelChoice, transposed: bool, tree: Any) -> Results:
    factors, layout = _parts(operands, tree)
    xs, ws = _halves(factors)
    rows = xs[0].shape[0] if layout.token is None else layout.num_tokens
    return [((rows, ws[0].shape[1 if transposed else 2]), xs[0].dtype)]


def _run_outer(
    platform: str, *operands: Any, kernel: KernelChoice, tokens: str, tree: Any
) -> list[Float[Array, "E M N"]]:
    (x, y), layout = _parts(operands, tree)
    by_token = [layout.token is not None and tokens == name for name in ("x", "y")]
    return [_kernel(kernel, platform).outer(x, y, layout, *by_token)]


def _outer_results(*operands: Any, kernel: KernelChoice, tokens: str, tree: Any) -> Results:
    (x, y), layout = _parts(operands, tree)
    return [((layout.sizes.shape[0], x.shape[1], y.shape[1]), x.dtype)]


_INTO = operation("grouped_product", _run_into, _into_results)
_OUT = operation("grouped_product_sum", _run_out, _out_results)
_OUTER = operation("grouped_outer_product", _run_outer, _outer_results)


def _halves(factors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    return factors[: len(factors) // 2], factors[len(factors) // 2 :]


def _moving(tangents: Sequence[Any]) -> list[int]:
    """Lists the places of the tangents that are not known to be zero."""
    return [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]


def _into_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, tree: Any, **static: Any) -> tuple[list, list]:
    (x, *ws), layout = _parts(primals, tree)
    dx, *dws = tangents[: 1 + len(ws)]
    ys, moving = into_rows(x, ws, layout, **static), _moving(dws)
    dys: list[Any] = [ad.Zero(jax.typeof(y).to_tangent_aval()) for y in ys]
    if type(dx) is not ad.Zero:
        dys = into_rows(dx, ws, layout, **static)
    if moving:
        for i, change in zip(moving, into_rows(x, [dws[i] for i in moving], layout, **static), strict=True):
            dys[i] = ad.add_tangents(dys[i], change)
    return ys, dys


def _into_transpose(
    cotangents: Sequence[Any], *operands: Any, kernel: KernelChoice, transposed: bool, tree: Any
) -> list:
    (x, *ws), layout = _parts(operands, tree)
    given, result = _moving(cotangents), [None] * len(operands)
    if ad.is_undefined_primal(x):
        if given:
            pairs = [cotangents[i] for i in given], [ws[i] for i in given]
            result[0] = out_of_rows(*pairs, layout, kernel, not transposed)
        return result
    for i in given:
        if ad.is_undefined_primal(ws[i]):
            result[1 + i] = _of_matrix(x, cotangents[i], layout, kernel, transposed, "x")
    return result


def _out_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, tree: Any, **static: Any) -> tuple[list, list]:
    factors, layout = _parts(primals, tree)
    xs, ws = _halves(factors)
    dxs, dws = _halves(tangents[: len(factors)])
    y = out_of_rows(xs, ws, layout, **static)
    dy: Any = ad.Zero(jax.typeof(y).to_tangent_aval())
    if moving := _moving(dxs):
        dy = out_of_rows([dxs[i] for i in moving], [ws[i] for i in moving], layout, **static)
    if moving := _moving(dws):
        change = out_of_rows([xs[i] for i in moving], [dws[i] for i in moving], layout, **static)
        dy = ad.add_tangents(dy, change)
    return [y], [dy]


def _out_transpose(
    cotangents: Sequence[Any], *operands: Any, kernel: KernelChoice, transposed: bool, tree: Any
) -> list:
    factors, layout = _parts(operands, tree)
    (cotangent,), result = cotangents, [None] * len(operands)
    if type(cotangent) is ad.Zero:
        return result
    for i, (x, w) in enumerate(zip(*_halves(factors), strict=True)):
        if ad.is_undefined_primal(x):
            (result[i],) = into_rows(cotangent, [w], layout, kernel, not transposed)
        elif ad.is_undefined_primal(w):
            result[len(factors) // 2 + i] = _of_matrix(x, cotangent, layout, kernel, transposed, "y")
    return result


def _of_matrix(x: Any, cotangent: Any, layout: RowLayout, kernel: KernelChoice, transposed: bool, tokens: str) -> Array:
    """Computes the cotangent of a matrix w from that of x @ w, or of x @ w^T; `tokens` as for them in this order."""
    if not transposed:
        return outer_of_rows(x, cotangent, layout, kernel, tokens)
    return outer_of_rows(cotangent, x, layout, kernel, "y" if tokens == "x" else "x")


def _outer_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, tree: Any, **static: Any) -> tuple[list, list]:
    (x, y), layout = _parts(primals, tree)
    dx, dy = tangents[:2]
    w = outer_of_rows(x, y, layout, **static)
    dw: Any = ad.Zero(jax.typeof(w).to_tangent_aval())
    if type(dx) is not ad.Zero:
        dw = outer_of_rows(dx, y, layout, **static)
    if type(dy) is not ad.Zero:
        dw = ad.add_tangents(dw, outer_of_rows(x, dy, layout, **static))
    return [w], [dw]


def _outer_transpose(cotangents: Sequence[Any], *operands: Any, kernel: KernelChoice, tokens: str, tree: Any) -> list:
    (x, y), layout = _parts(operands, tree)
    (cotangent,), result = cotangents, [None] * len(operands)
    if type(cotangent) is ad.Zero:
        return result
    of_x = ad.is_undefined_primal(x)
    other, other_is_of_tokens = (y, tokens == "y") if of_x else (x, tokens == "x")
    if other_is_of_tokens:
        (result[0 if of_x else 1],) = into_rows(other, [cotangent], layout, kernel, of_x)
    else:
        result[0 if of_x else 1] = out_of_rows([other], [cotangent], layout, kernel, of_x)
    return result


ad.primitive_jvps.update({_INTO: _into_jvp, _OUT: _out_jvp, _OUTER: _outer_jvp})
ad.primitive_transposes.update({_INTO: _into_transpose, _OUT: _out_transpose, _OUTER: _outer_transpose})
