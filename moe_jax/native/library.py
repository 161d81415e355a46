"""The library of handlers that XLA calls on the CPU."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from moe_jax.runtime.mesh import vary_alike

LIBRARY = Path(__file__).with_name("libmoe_jax.so")
HANDLERS = ("product", "product_transposed", "product_sum", "product_sum_transposed", "outer", "sort", "rank")


@functools.cache
def is_installed() -> bool:
    """Returns true if the library exists, and registers its handlers with XLA."""
    if not LIBRARY.exists():
        return False
    library = ctypes.CDLL(str(LIBRARY))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, f"moe_jax_{name}"))
        jax.ffi.register_ffi_target(f"moe_jax_{name}", handler, platform="cpu")
    return True


def call(name: str, results: Sequence[tuple[tuple[int, ...], Any]], *operands: Array) -> Sequence[Array]:
    """Calls a handler of the library.

    Args:
      name: a name in HANDLERS; `handlers.cc` says what each computes.
      results: shape and type of each result.
      *operands: arguments of the handler.

    Raises:
      RuntimeError: the library is not installed.
    """
    if not is_installed():
        raise RuntimeError(f"{LIBRARY} does not exist; build it by installing moe_jax: pip install -e .")
    operands = vary_alike(operands)
    # Within `shard_map` results vary as the operands do.
    kind = jax.typeof(operands[0])
    where = {"sharding": NamedSharding(kind.sharding.mesh, PartitionSpec()), "manual_axis_type": kind.manual_axis_type}
    where = where if kind.manual_axis_type.varying else {}
    shapes = [jax.ShapeDtypeStruct(shape, dtype, **where) for shape, dtype in results]
    return jax.ffi.ffi_call(f"moe_jax_{name}", shapes, vmap_method="sequential")(*operands)
