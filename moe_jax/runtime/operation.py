"""Operations: functions that run other code on each platform, chosen when a program is compiled, not when it is traced.

JAX differentiates them by rules that their files register, where they have floating-point operands.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from moe_jax.runtime.mesh import current_platform

Results = Sequence[tuple[tuple[int, ...], Any]]
"""Shape and type of each result."""


def operation(
    name: str,
    run: Callable[..., Sequence[Array]],
    results: Callable[..., Results],
    batch: Callable[..., Any] | None = None,
) -> Primitive:
    """Makes an operation of arrays, which within `shard_map` must all vary over the same axes.

    Args:
      name: its name in a program's text.
      run: (platform, *arrays, **static) -> results. The platform is the one that a program is compiled or exported for,
        `cpu`, `gpu` or `tpu`; without a program it is the ambient one. The static arguments can be hashed.
      results: (*arrays, **static) -> shape and type of each result.
      batch: its rule for `jax.vmap`; None runs one member of the batch after another.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    # Outside of a program an operation is a program of its own, which is compiled once.
    program = functools.cache(lambda platform, *static: jax.jit(functools.partial(run, platform, **dict(static))))
    primitive.def_impl(lambda *operands, **static: program(current_platform(), *static.items())(*operands))

    def abstract(*operands: Any, **static: Any) -> list[Any]:
        # Results vary over the axes of a mesh as the operands do.
        first = operands[0]

        def like_first(shape: tuple[int, ...], dtype: Any) -> Any:
            sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(shape)))
            return first.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding)

        return [like_first(*result) for result in results(*operands, **static)]

    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch or functools.partial(_one_by_one, primitive)
    # JAX knows GPUs by several names: a rule without a platform is that of all others.
    for platform, only in (("gpu", None), ("cpu", "cpu"), ("tpu", "tpu")):
        lowering = mlir.lower_fun(functools.partial(run, platform), multiple_results=True)
        mlir.register_lowering(primitive, lowering, platform=only)
    return primitive


def _one_by_one(
    primitive: Primitive, operands: Sequence[Any], axes: Sequence[int | None], **static: Any
) -> tuple[list[Array], list[int]]:
    """Runs an operation on one member of a batch after another."""
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]

    def one(members: list[Array]) -> list[Array]:
        member = iter(members)
        return primitive.bind(*(x if a is None else next(member) for x, a in zip(moved, axes, strict=True)), **static)

    results = jax.lax.map(one, [x for x, axis in zip(moved, axes, strict=True) if axis is not None])
    return results, [0] * len(results)
