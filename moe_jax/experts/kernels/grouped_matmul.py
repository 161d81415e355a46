"""Grouped matrix products with their gradients: each row meets the matrix of its expert.

T tokens, A rows sorted by expert, E experts, M and N widths.
"""

from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.choice import KernelChoice, choose_kernel
from moe_jax.experts.kernels.grouped_products import into_rows, out_of_rows
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
    choose_kernel(kernel)
    x, ws, layout = vary_alike((x, ws, layout))
    return tuple(into_rows(x, ws, layout, kernel))


def out_of_experts(pairs: tuple[Pair, ...], layout: RowLayout, kernel: KernelChoice = "auto") -> Float[Array, "T N"]:
    """Sums x[a] @ w[expert of a] over the rows a of each token and over pairs (x, w): from sorted rows to tokens."""
    choose_kernel(kernel)
    pairs, layout = vary_alike((pairs, layout))
    return out_of_rows(*zip(*pairs, strict=True), layout, kernel)
