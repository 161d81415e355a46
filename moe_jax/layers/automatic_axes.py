"""Modules on meshes with explicit axes, within which JAX asks of every operation how its result is divided."""

from collections.abc import Callable
from typing import Any

import jax
from flax.core import lift
from flax.linen.transforms import lift_transform
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def explicit_axes() -> tuple[str, ...]:
    """Returns the explicit axes of the ambient mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in kinds if kind == AxisType.Explicit)


def on_automatic_axes(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a module's method so that within it XLA divides what it computes, also over explicit axes.

    The result is divided as the method's first argument is, but for its last axis. Variables that the method writes are
    whole on every device.
    """

    def transform(run: Callable[..., Any]) -> Callable[..., Any]:
        def packed(scope_of: Any, repack: Any, variables: Any, rngs: Any, x: jax.Array, *others: Any) -> Any:
            def all_of(variables: Any, rngs: Any, x: jax.Array, *others: Any) -> Any:
                scope = scope_of(variables, rngs)
                return run(scope, x, *others), repack(scope)

            *outer, _ = jax.typeof(x).sharding.spec
            run_all = jax.sharding.auto_axes(all_of, axes=explicit_axes(), out_sharding=(P(*outer), P()))
            return run_all(variables, rngs, x, *others)

        return lift.pack(packed, (True,), (True,), (True,), name="automatic_axes")

    return lift_transform(transform, method)
