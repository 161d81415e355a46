"""Grouped matrix products with their gradients: each row meets the matrix of its expert.

T tokens, A rows sorted by expert, E experts, M and N widths.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.choice import KERNELS, KernelChoice, choose_kernel
from moe_jax.experts.kernels.kernel import RowLayout
from moe_jax.runtime.mesh import vary_alike

Pair = tuple[Float[Array, "A _"], Float[Array, "E _ N"]]


def grouped_matmul(
    x: Float[Array, "A M"],
    w: Float[Array, "E M N"],
    sizes: Int[Array, " E"],
    kernel: KernelChoice = "auto",
) -> Float[Array, "A N"]:
    """Computes x[a] @ w[e] for the rows a of each expert e; rows are sorted by expert.

    Args:
      x: rows. The contents of rows past the sum of `sizes` do not matter.
      w: the matrix of each expert.
      sizes: number of rows of each expert; their sum is at most A.
      kernel: a name in KERNELS, or `auto`, the fastest on the platform.

    Returns:
      The products, zeros for rows past the sum of `sizes`. The gradient of an expert without rows is exactly zero, and
      so is that of rows past the sum.

    Raises:
      ConfigError: the platform does not have the kernel.
    """
    (y,) = into_experts(x, (w,), RowLayout(sizes), kernel)
    return y


def into_experts(
    x: Float[Array, "T M"], ws: tuple[Float[Array, "E M _"], ...], layout: RowLayout, kernel: KernelChoice = "auto"
) -> tuple[Float[Array, "A _"], ...]:
    """Computes x[token[a]] @ w[expert of a] for each w: from tokens to sorted rows."""
    x, ws, layout = vary_alike((x, ws, layout))
    return _into(choose_kernel(kernel), x, ws, layout)


def out_of_experts(pairs: tuple[Pair, ...], layout: RowLayout, kernel: KernelChoice = "auto") -> Float[Array, "T N"]:
    """Sums x[a] @ w[expert of a] over the rows a of each token and over pairs (x, w): from sorted rows to tokens."""
    pairs, layout = vary_alike((pairs, layout))
    return _out(choose_kernel(kernel), pairs, layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _into(kernel: str, x: Array, ws: tuple[Array, ...], layout: RowLayout) -> tuple[Array, ...]:
    return tuple(KERNELS[kernel].product(x, w, layout, False) for w in ws)


def _into_forward(kernel: str, x: Array, ws: tuple[Array, ...], layout: RowLayout) -> tuple[tuple[Array, ...], Any]:
    return _into(kernel, x, ws, layout), (x, ws, layout)


def _into_backward(kernel: str, saved: Any, gradients: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], None]:
    x, ws, layout = saved
    run, by_token = KERNELS[kernel], layout.token is not None
    return (
        run.product_sum(gradients, ws, layout, True),
        tuple(run.outer(x, gradient, layout, by_token, False) for gradient in gradients),
        None,
    )


_into.defvjp(_into_forward, _into_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _out(kernel: str, pairs: tuple[Pair, ...], layout: RowLayout) -> Array:
    xs, ws = zip(*pairs, strict=True)
    return KERNELS[kernel].product_sum(xs, ws, layout, False)


def _out_forward(kernel: str, pairs: tuple[Pair, ...], layout: RowLayout) -> tuple[Array, Any]:
    return _out(kernel, pairs, layout), (pairs, layout)


def _out_backward(kernel: str, saved: Any, gradient: Array) -> tuple[tuple[Pair, ...], None]:
    pairs, layout = saved
    run, by_token = KERNELS[kernel], layout.token is not None
    return tuple(
        (run.product(gradient, w, layout, True), run.outer(x, gradient, layout, False, by_token)) for x, w in pairs
    ), None


_out.defvjp(_out_forward, _out_backward)
