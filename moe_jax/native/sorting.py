"""Counting sort: stable order and ranks of small integer keys, such as expert indices.

N keys.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.native.library import call, is_installed
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import current_platform

NOWHERE = -1


def has_native_sort() -> bool:
    """Returns whether the platform has native code that sorts by counting."""
    return current_platform() == "cpu" and is_installed()


@typed
def rank_within_key(key: Int[Array, " N"], counted: Bool[Array, " N"]) -> Int[Array, " N"]:
    """Counts, for each element, the earlier `counted` elements with the same key; needs `has_native_sort`."""
    (rank,) = call("rank", [(key.shape, jnp.int32)], key, counted)
    return rank


@typed
def counting_sort(key: Int[Array, " N"], num_keys: int) -> tuple[Int[Array, " N"], Int[Array, " N"], Int[Array, " _"]]:
    """Sorts elements by key; elements with the same key keep their order.

    Args:
      key: keys from 0 to num_keys - 1; NOWHERE excludes an element.
      num_keys: number of distinct keys.

    Returns:
      The place of each element in sorted order, the element at each place (NOWHERE in both for none), and the number of
      elements with each key.
    """
    if has_native_sort():
        shapes = [(key.shape, jnp.int32), (key.shape, jnp.int32), ((num_keys,), jnp.int32)]
        place, element, sizes = call("sort", shapes, key)
        return place, element, sizes
    last = jnp.where(key == NOWHERE, num_keys, key)
    order = jnp.argsort(last, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(last, length=num_keys + 1)[:num_keys].astype(jnp.int32)
    index = jnp.arange(key.size, dtype=jnp.int32)
    element = jnp.where(index < sizes.sum(), order, NOWHERE)
    place = jnp.zeros_like(order).at[order].set(index)
    return jnp.where(key == NOWHERE, NOWHERE, place), element, sizes
