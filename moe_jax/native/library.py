"""The library of handlers that XLA calls on the CPU."""

import ctypes
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from moe_jax.runtime.mesh import vary_alike

LIBRARY = Path(__file__).with_name("libmoe_jax.so")
FLOAT, INDEX, MASK = "float32", "int32", "bool"
HANDLERS: dict[str, tuple[str, ...]] = {
    "product": (FLOAT, FLOAT, INDEX, INDEX),
    "product_transposed": (FLOAT, FLOAT, INDEX, INDEX),
    "product_sum": (INDEX, INDEX, FLOAT, FLOAT),
    "product_sum_transposed": (INDEX, INDEX, FLOAT, FLOAT),
    "outer": (FLOAT, FLOAT, INDEX, INDEX, INDEX),
    "sort": (INDEX,),
    "rank": (INDEX, MASK),
}
"""The types that each handler reads its operands by; the last type is that of all further operands."""


@functools.cache
def is_installed() -> bool:
    """Returns true if the library exists, and registers its handlers with XLA; warns if it could not be built."""
    if not LIBRARY.exists():
        warnings.warn(_missing(), RuntimeWarning, stacklevel=2)
        return False
    library = ctypes.CDLL(str(LIBRARY))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, f"moe_jax_{name}"))
        jax.ffi.register_ffi_target(f"moe_jax_{name}", handler, platform="cpu")
    return True


def export_checks() -> list[jax.export.DisabledSafetyCheck]:
    """Returns the `disabled_checks` with which `jax.export.export` lets a program for the CPU call these handlers.

    The process that reads the program calls this too, before it runs it, which registers the handlers there.
    """
    names = HANDLERS if is_installed() else ()
    return [jax.export.DisabledSafetyCheck.custom_call(f"moe_jax_{name}") for name in names]


def call(name: str, results: Sequence[tuple[tuple[int, ...], Any]], *operands: Array) -> Sequence[Array]:
    """Calls a handler of the library.

    Args:
      name: a name in HANDLERS; `handlers.cc` says what each computes.
      results: shape and type of each result.
      *operands: arguments of the handler.

    Raises:
      RuntimeError: the library is not installed.
      TypeError: an operand has another type than the handler reads.
    """
    types = HANDLERS[name]
    for i, operand in enumerate(operands):
        read = types[min(i, len(types) - 1)]
        if operand.dtype != read:
            raise TypeError(f"operand {i} of native handler {name!r} is {operand.dtype}, but it reads {read}")
    if not is_installed():
        raise RuntimeError(_missing())
    operands = vary_alike(operands)
    # Within `shard_map` results vary as the operands do.
    kind = jax.typeof(operands[0])
    where = {"sharding": NamedSharding(kind.sharding.mesh, PartitionSpec()), "manual_axis_type": kind.manual_axis_type}
    where = where if kind.manual_axis_type.varying else {}
    shapes = [jax.ShapeDtypeStruct(shape, dtype, **where) for shape, dtype in results]
    return jax.ffi.ffi_call(f"moe_jax_{name}", shapes, vmap_method="sequential")(*operands)


def _missing() -> str:
    """Says that the library is not there, what follows, and why it could not be built, if that is known."""
    reason = LIBRARY.with_suffix(".txt")
    why = f": {reason.read_text(encoding='utf-8').strip()}" if reason.exists() else ""
    return (
        "moe_jax's native code for CPUs is missing, so experts run on slower kernels that XLA compiles; install "
        f"moe_jax again to build {LIBRARY}{why}"
    )
