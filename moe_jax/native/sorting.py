"""Counting sort: stable order and ranks of small integer keys, such as expert indices.

N keys; G groups of A keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.native.library import call, is_installed
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import vary_alike
from moe_jax.runtime.operation import Results, operation

NOWHERE = -1


def has_native_sort(platform: str) -> bool:
    """Returns whether the platform has native code that sorts by counting."""
    return platform == "cpu" and is_installed()


@typed
def rank_within_key(key: Int[Array, "G A"], counted: Bool[Array, "G A"], num_keys: int) -> Int[Array, "G A"]:
    """Counts, for each element, the earlier `counted` elements of its group with the same key.

    Args:
      key: keys from 0 to num_keys - 1.
      counted: which elements count.
      num_keys: number of distinct keys.
    """
    (rank,) = _RANK.bind(*vary_alike((key, counted)), num_keys=num_keys)
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
    place, element, sizes = _SORT.bind(key, num_keys=num_keys)
    return place, element, sizes


def _rank(platform: str, key: Any, counted: Any, num_keys: int) -> list[Array]:
    if has_native_sort(platform):
        of_group = key + num_keys * jnp.arange(key.shape[0], dtype=jnp.int32)[:, None]
        (rank,) = call("rank", [((key.size,), jnp.int32)], of_group.reshape(-1), counted.reshape(-1))
        return [rank.reshape(key.shape)]
    asks = jax.nn.one_hot(key, num_keys, dtype=jnp.int32) * counted[..., None].astype(jnp.int32)
    earlier = jnp.cumsum(asks, axis=1) - asks
    return [jnp.take_along_axis(earlier, key[..., None], axis=-1)[..., 0]]


def _rank_results(key: Any, counted: Any, num_keys: int) -> Results:
    return [(key.shape, jnp.int32)]


def _sort(platform: str, key: Any, num_keys: int) -> list[Array]:
    if has_native_sort(platform):
        return list(call("sort", _sort_results(key, num_keys), key))
    last = jnp.where(key == NOWHERE, num_keys, key)
    order = jnp.argsort(last, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(last, length=num_keys + 1)[:num_keys].astype(jnp.int32)
    index = jnp.arange(key.size, dtype=jnp.int32)
    element = jnp.where(index < sizes.sum(), order, NOWHERE)
    place = jnp.zeros_like(order).at[order].set(index)
    return [jnp.where(key == NOWHERE, NOWHERE, place), element, sizes]


def _sort_results(key: Any, num_keys: int) -> Results:
    return [(key.shape, jnp.int32), (key.shape, jnp.int32), ((num_keys,), jnp.int32)]


_RANK = operation("rank_within_key", _rank, _rank_results)
_SORT = operation("counting_sort", _sort, _sort_results)
