"""Grouped products for TPUs, by the algorithm of the megablox kernels that come with JAX.

JAX's own cannot be called within `shard_map`: they do not declare over which of its axes their results vary. Ours are
in `megablox_pallas.py`, imported when it is first needed, because importing Pallas takes a quarter of a second.

A rows sorted by expert, E experts, M and N widths.
"""

from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.kernel import of_sorted_rows


def _product(
    x: Float[Array, "A M"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], transposed: bool
) -> Float[Array, "A N"]:
    from moe_jax.experts.kernels.megablox_pallas import product

    return product(x, w, sizes, transposed)


def _outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    from moe_jax.experts.kernels.megablox_pallas import outer

    return outer(x, y, sizes)


MEGABLOX = of_sorted_rows(_product, _outer)
