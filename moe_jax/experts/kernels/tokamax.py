"""Grouped products for GPUs, by the library tokamax: in Mosaic if the GPU, type and widths allow it, else in Triton.

The library is in the extra `gpu`. It is imported when it is first needed, because that takes seconds.

A rows sorted by expert, E experts, M and N widths.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from moe_jax.experts.kernels.kernel import of_sorted_rows
from moe_jax.runtime.mesh import vary_alike

# The implementations of tokamax in the order in which it tries them; "xla" runs on any device.
IMPLEMENTATIONS = ("mosaic_gpu", "triton", "xla")
# Mosaic needs axes that are multiples of this; tokamax finds out about others too late to try its next implementation.
MOSAIC_TILE = 64
# Rows of its largest tile: in Triton it reads that far past the last row, and before the first row if the first expert
# has none.
MARGIN = 256


def _dimensions(x: int, w: int, grouped: bool) -> jax.lax.RaggedDotDimensionNumbers:
    """Describes a product of sorted rows with matrices (`grouped`), or with other rows, by the axes to contract."""
    return jax.lax.RaggedDotDimensionNumbers((([x], [w]), ([], [])), [0], [0] if grouped else [])


_PLAIN, _TRANSPOSED, _OUTER = _dimensions(1, 1, True), _dimensions(1, 2, True), _dimensions(0, 0, False)


@functools.cache
def has_tokamax() -> bool:
    """Returns whether the library is installed."""
    return importlib.util.find_spec("tokamax") is not None


def _product(
    x: Float[Array, "A M"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], transposed: bool
) -> Float[Array, "A N"]:
    return _dot(_pad(x, 0), w, sizes, _TRANSPOSED if transposed else _PLAIN)[: x.shape[0]]


def _outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    """Sums outer products, with an expert whose rows are zeros before the first."""
    sizes = jnp.pad(sizes, (1, 0), constant_values=MARGIN)
    return _dot(_pad(x, MARGIN), _pad(y, MARGIN), sizes, _OUTER)[1:]


TOKAMAX = of_sorted_rows(_product, _outer)


def _pad(x: Float[Array, "A _"], before: int) -> Float[Array, "_ _"]:
    """Adds rows of zeros before and after, up to a whole number of tiles."""
    return jnp.pad(x, ((before, MARGIN + -x.shape[0] % MOSAIC_TILE), (0, 0)))


def _dot(
    x: Float[Array, "_ _"],
    w: Float[Array, "..."],
    sizes: Int[Array, " _"],
    dimensions: jax.lax.RaggedDotDimensionNumbers,
) -> Float[Array, "..."]:
    import tokamax

    if not flags.FLAGS.is_parsed():
        # tokamax reads its settings from absl, which would otherwise parse a command line that is not meant for it.
        flags.FLAGS.mark_as_parsed()
    whole = all(size % MOSAIC_TILE == 0 for size in (*x.shape, *w.shape[-2:]))
    implementations = IMPLEMENTATIONS if whole else IMPLEMENTATIONS[1:]

    def run(x: Array, w: Array, sizes: Array) -> Array:
        # tokamax relies on JAX's default promotion of types.
        with jax.numpy_dtype_promotion("standard"):
            return tokamax.ragged_dot_general(x, w, sizes, dimensions, implementation=implementations)

    if not jax.sharding.get_abstract_mesh().manual_axes:
        return run(x, w, sizes)
    # Its kernels do not declare over which axes of a mesh their results vary, which a `shard_map` that checks refuses.
    # So an inner `shard_map` does not check, and `vary_alike` declares the axes. No gradient is taken through it.
    x, w, sizes = vary_alike((x, w, sizes))
    everywhere = PartitionSpec()
    unchecked = jax.shard_map(run, in_specs=everywhere, out_specs=everywhere, axis_names=frozenset(), check_vma=False)
    return vary_alike((unchecked(x, w, sizes), x))[0]
