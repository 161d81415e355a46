"""The kernels of megablox in Pallas: a TPU visits the tiles of rows of each expert in turn.

A tile that several experts share is visited once for each. The number of visits depends on how many rows experts have,
so the size of a kernel's grid is a value computed on the device. Sums are float32.

A rows sorted by expert, E experts, M and N widths, V visits.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from moe_jax.runtime.mesh import vary_alike

# Rows of a tile: enough multiplications for each parameter read that the multipliers of a TPU v5 do not wait.
ROWS = 256
# Bytes of a row of a tile: the tiles of operands and result, twice to load ahead, fit the default limit of 16 MiB.
ROW_BYTES = 2048
# Elements of a row in a register.
LANES = 128


class Visits(NamedTuple):
    """The visits of tiles.

    Attributes:
      expert: expert of each visit.
      tile: tile of rows that is visited.
      start: first row of the expert.
      end: row after the expert's last.
    """

    expert: Int[Array, " V"]
    tile: Int[Array, " V"]
    start: Int[Array, " V"]
    end: Int[Array, " V"]


def product(
    x: Float[Array, "A M"], w: Float[Array, "E _ _"], sizes: Int[Array, " E"], transposed: bool
) -> Float[Array, "A N"]:
    """Computes x[a] @ w[expert of a]; rows of no expert may hold anything. `transposed`: w is [E, N, M]."""
    rows, width = x.shape
    shape = rows, w.shape[1 if transposed else 2]
    if not rows:
        return jnp.zeros_like(x, shape=shape)
    x, w, sizes = vary_alike((x, w, sizes))
    tile, m, n = min(ROWS, rows), _tile(width, x.dtype), _tile(shape[1], x.dtype)
    visits, number = _visits(sizes, rows, tile)
    if transposed:
        matrix = pl.BlockSpec((None, n, m), lambda j, v, k, visits: (visits.expert[v], j, k))
    else:
        matrix = pl.BlockSpec((None, m, n), lambda j, v, k, visits: (visits.expert[v], k, j))
    return pl.pallas_call(
        functools.partial(_multiply, width=width, transposed=transposed),
        jax.ShapeDtypeStruct(shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(shape[1], n), number, pl.cdiv(width, m)),
            in_specs=[pl.BlockSpec((tile, m), lambda j, v, k, visits: (visits.tile[v], k)), matrix],
            out_specs=pl.BlockSpec((tile, n), lambda j, v, k, visits: (visits.tile[v], j)),
            scratch_shapes=[pltpu.VMEM((tile, n), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        name="megablox_product",
    )(visits, x, w)


def outer(x: Float[Array, "A M"], y: Float[Array, "A N"], sizes: Int[Array, " E"]) -> Float[Array, "E M N"]:
    """Sums x[a]^T y[a] over the rows a of each expert; the sum of an expert without rows may hold anything."""
    rows = x.shape[0]
    shape = sizes.shape[0], x.shape[1], y.shape[1]
    if not rows:
        return jnp.zeros_like(x, shape=shape)
    x, y, sizes = vary_alike((x, y, sizes))
    tile, m, n = min(ROWS, rows), _tile(shape[1], x.dtype), _tile(shape[2], x.dtype)
    visits, number = _visits(sizes, rows, tile)
    return pl.pallas_call(
        _add_outer,
        jax.ShapeDtypeStruct(shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(shape[1], m), pl.cdiv(shape[2], n), number),
            in_specs=[
                pl.BlockSpec((tile, m), lambda i, j, v, visits: (visits.tile[v], i)),
                pl.BlockSpec((tile, n), lambda i, j, v, visits: (visits.tile[v], j)),
            ],
            out_specs=pl.BlockSpec((None, m, n), lambda i, j, v, visits: (visits.expert[v], i, j)),
            scratch_shapes=[pltpu.VMEM((m, n), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="megablox_outer",
    )(visits, x, y)


def _multiply(visits: Visits, x: Any, w: Any, y: Any, total: Any, *, width: int, transposed: bool) -> None:
    """Adds up a tile's product over the parts of its rows, and stores the rows that belong to the visit's expert."""
    v, k = pl.program_id(1), pl.program_id(2)

    @pl.when(k == 0)
    def _start() -> None:
        total[...] = jnp.zeros_like(total)

    left, right = x[...], w[...]
    if width % x.shape[1]:
        # A part that reaches past the end of the rows holds anything there, even NaN, which a factor of 0 would keep.
        left = _only(left, 1, k, 0, width)
        right = _only(right, 1 if transposed else 0, k, 0, width)
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
    total[...] += jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)

    @pl.when(k == pl.num_programs(2) - 1)
    def _store() -> None:
        mine = _between(total.shape, 0, visits.tile[v], visits.start[v], visits.end[v])
        y[...] = jnp.where(mine, total[...], y[...].astype(jnp.float32)).astype(y.dtype)


def _add_outer(visits: Visits, x: Any, y: Any, w: Any, total: Any) -> None:
    """Adds up the outer products of an expert's rows, over the tiles that have any."""
    v, last = pl.program_id(2), pl.num_programs(2) - 1
    expert = visits.expert[v]

    @pl.when((v == 0) | (visits.expert[jnp.maximum(v - 1, 0)] != expert))
    def _start() -> None:
        total[...] = jnp.zeros_like(total)

    left, right = (_only(rows[...], 0, visits.tile[v], visits.start[v], visits.end[v]) for rows in (x, y))
    total[...] += jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    @pl.when((v == last) | (visits.expert[jnp.minimum(v + 1, last)] != expert))
    def _store() -> None:
        w[...] = total[...].astype(w.dtype)


def _only(block: Float[Array, "_ _"], axis: int, tile: Any, start: Any, end: Any) -> Float[Array, "_ _"]:
    """Sets the block to zero outside of `start` to `end`; see `_between`."""
    # Not all TPUs compare narrower types.
    wide = jnp.where(_between(block.shape, axis, tile, start, end), block.astype(jnp.float32), 0.0)
    return wide.astype(block.dtype)


def _between(shape: tuple[int, ...], axis: int, tile: Any, start: Any, end: Any) -> Array:
    """Marks the elements whose position along `axis` is from `start` to before `end`, in the `tile`-th block."""
    place = jax.lax.broadcasted_iota(jnp.int32, shape, axis) + tile * shape[axis]
    return (place >= start) & (place < end)


def _visits(sizes: Int[Array, " E"], rows: int, tile: int) -> tuple[Visits, Int[Array, ""]]:
    """Lists as many visits as there can be, and counts those there are: at least one, of no rows if there are none."""
    experts = sizes.shape[0]
    ends = jnp.cumsum(sizes)
    starts = ends - sizes
    first = starts // tile
    counts = jnp.where(sizes > 0, -(-ends // tile) - first, 0)
    most = pl.cdiv(rows, tile) + experts - 1
    expert = jnp.repeat(jnp.arange(experts, dtype=jnp.int32), counts, total_repeat_length=most)
    before = jnp.cumsum(counts) - counts
    number = jnp.arange(most, dtype=jnp.int32) - before[expert]
    visits = Visits(expert, first[expert] + number, starts[expert], ends[expert])
    return visits, jnp.maximum(counts.sum(), 1)


def _tile(width: int, dtype: Any) -> int:
    """Chooses the elements of a row of a tile: all, or as even parts as registers allow."""
    most = ROW_BYTES // jnp.dtype(dtype).itemsize
    if width <= most:
        return width
    return LANES * pl.cdiv(width, LANES * pl.cdiv(width, most))
