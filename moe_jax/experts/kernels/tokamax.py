"""Grouped products for GPUs, by the library tokamax: in Mosaic if the GPU, type and widths allow it, else in Triton.

Imported when it is first needed: it is in the extra `gpu`, and takes seconds.

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

# Its own in the order in which it tries them; XLA's for a device that neither is for.
IMPLEMENTATIONS = ("mosaic_gpu", "triton", "xla")
# Of what Mosaic's axes have to be multiples; of others tokamax learns when it is too late for it to try the next.
MOSAIC_TILE = 64
# As many as there are in its largest tile of rows: in Triton it reads so far past the last, and before the first where
# that is to be of an empty group.
MARGIN = 256


def _dimensions(x: int, w: int, grouped: bool) -> jax.lax.RaggedDotDimensionNumbers:
    """Axes to contract, of rows sorted by group and of matrices, or of rows, too."""
    return jax.lax.RaggedDotDimensionNumbers((([x], [w]), ([], [])), [0], [0] if grouped else [])


_PLAIN, _TRANSPOSED, _OUTER = _dimensions(1, 1, True), _dimensions(1, 2, True), _dimensions(0, 0, False)


@functools.cache
def has_tokamax() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("tokamax") is not None


def _product(
    x: Float[Array, "A M"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], transposed: bool
) -> Float[Array, "A N"]:
    return _dot(_pad(x, 0), w, sizes, _TRANSPOSED if transposed else _PLAIN)[: x.shape[0]]


def _outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    """With a group of zeros before the first."""
    sizes = jnp.pad(sizes, (1, 0), constant_values=MARGIN)
    return _dot(_pad(x, MARGIN), _pad(y, MARGIN), sizes, _OUTER)[1:]


TOKAMAX = of_sorted_rows(_product, _outer)


def _pad(x: Float[Array, "A _"], before: int) -> Float[Array, "_ _"]:
    """Zeros around the rows, and whole tiles of all."""
    return jnp.pad(x, ((before, MARGIN + -x.shape[0] % MOSAIC_TILE), (0, 0)))


def _dot(
    x: Float[Array, "_ _"],
    w: Float[Array, "..."],
    sizes: Int[Array, " _"],
    dimensions: jax.lax.RaggedDotDimensionNumbers,
) -> Float[Array, "..."]:
    import tokamax

    if not flags.FLAGS.is_parsed():
        # It reads its settings from absl, and would have it parse a command line that is not absl's.
        flags.FLAGS.mark_as_parsed()
    whole = all(size % MOSAIC_TILE == 0 for size in (*x.shape, *w.shape[-2:]))
    implementations = IMPLEMENTATIONS if whole else IMPLEMENTATIONS[1:]

    def run(x: Array, w: Array, sizes: Array) -> Array:
        # It mixes types as JAX lets it by default.
        with jax.numpy_dtype_promotion("standard"):
            return tokamax.ragged_dot_general(x, w, sizes, dimensions, implementation=implementations)

    if not jax.sharding.get_abstract_mesh().manual_axes:
        return run(x, w, sizes)
    # Its kernels do not say over which axes of a mesh their results vary, which `shard_map` refuses while it checks.
    # Here alone it does not, and what it would have found is said instead: gradients are not its to take.
    x, w, sizes = vary_alike((x, w, sizes))
    everywhere = PartitionSpec()
    unchecked = jax.shard_map(run, in_specs=everywhere, out_specs=everywhere, axis_names=frozenset(), check_vma=False)
    return vary_alike((unchecked(x, w, sizes), x))[0]
