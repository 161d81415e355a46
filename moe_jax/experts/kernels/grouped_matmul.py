"""Grouped matrix products with their gradients: each row meets the matrix of its expert.

T tokens, A rows sorted by expert, E experts, M and N widths.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.choice import KERNELS, KernelChoice, choose_kernel
from moe_jax.experts.kernels.kernel import Groups
from moe_jax.runtime.mesh import vary_alike

Pair = tuple[Float[Array, "A _"], Float[Array, "E _ N"]]


def grouped_matmul(
    x: Float[Array, "A M"],
    w: Float[Array, "E M N"],
    group_sizes: Int[Array, " E"],
    implementation: KernelChoice = "auto",
) -> Float[Array, "A N"]:
    """x[a] @ w[e] for the rows a of each expert e, which lie together, in order of expert.

    Args:
      x: rows; what those past the last group hold does not matter.
      w: a matrix of each expert.
      group_sizes: rows of each expert; their sum is at most A.
      implementation: a name in KERNELS, or `auto`, the fastest on the platform.

    Returns:
      The products, zeros for rows past the last group. Gradients of the matrices of empty groups are exactly zero, as
      are those of rows past the last.

    Raises:
      ConfigError: the platform does not have the implementation.
    """
    (y,) = into_experts(x, (w,), Groups(group_sizes), implementation)
    return y


def into_experts(
    x: Float[Array, "T M"], ws: tuple[Float[Array, "E M _"], ...], groups: Groups, kernel: KernelChoice = "auto"
) -> tuple[Float[Array, "A _"], ...]:
    """x[token[a]] @ w[expert of a] for each w: from tokens to sorted rows."""
    x, ws, groups = vary_alike((x, ws, groups))
    return _into(choose_kernel(kernel), x, ws, groups)


def out_of_experts(pairs: tuple[Pair, ...], groups: Groups, kernel: KernelChoice = "auto") -> Float[Array, "T N"]:
    """Over the rows a of each token, and pairs (x, w), the sum of x[a] @ w[expert of a]: from sorted rows to tokens."""
    pairs, groups = vary_alike((pairs, groups))
    return _out(choose_kernel(kernel), pairs, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _into(kernel: str, x: Array, ws: tuple[Array, ...], groups: Groups) -> tuple[Array, ...]:
    return tuple(KERNELS[kernel].product(x, w, groups, False) for w in ws)


def _into_forward(kernel: str, x: Array, ws: tuple[Array, ...], groups: Groups) -> tuple[tuple[Array, ...], Any]:
    return _into(kernel, x, ws, groups), (x, ws, groups)


def _into_backward(kernel: str, saved: Any, gradients: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], None]:
    x, ws, groups = saved
    run, by_token = KERNELS[kernel], groups.token is not None
    return (
        run.product_sum(gradients, ws, groups, True),
        tuple(run.outer(x, gradient, groups, by_token, False) for gradient in gradients),
        None,
    )


_into.defvjp(_into_forward, _into_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _out(kernel: str, pairs: tuple[Pair, ...], groups: Groups) -> Array:
    xs, ws = zip(*pairs, strict=True)
    return KERNELS[kernel].product_sum(xs, ws, groups, False)


def _out_forward(kernel: str, pairs: tuple[Pair, ...], groups: Groups) -> tuple[Array, Any]:
    return _out(kernel, pairs, groups), (pairs, groups)


def _out_backward(kernel: str, saved: Any, gradient: Array) -> tuple[tuple[Pair, ...], None]:
    pairs, groups = saved
    run, by_token = KERNELS[kernel], groups.token is not None
    return tuple(
        (run.product(gradient, w, groups, True), run.outer(x, gradient, groups, False, by_token)) for x, w in pairs
    ), None


_out.defvjp(_out_forward, _out_backward)
