"""Order by keys of which there are few, which takes counting and no comparison.

N keys.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.devices import current_platform
from moe_jax.native.library import call, is_installed

NOWHERE = -1


def counts_natively() -> bool:
    """Whether there is code for the platform that counts one element after the other."""
    return current_platform() == "cpu" and is_installed()


def count_earlier(key: Int[Array, " N"], counted: Bool[Array, " N"]) -> Int[Array, " N"]:
    """How many earlier elements that are `counted` have each element's key, from 0; where `counts_natively`."""
    (rank,) = call("rank", [(key.shape, jnp.int32)], key, counted)
    return rank


def sort_by_key(key: Int[Array, " N"], num_keys: int) -> tuple[Int[Array, " N"], Int[Array, " N"], Int[Array, " _"]]:
    """Where each element goes, and which element goes to each place, NOWHERE for none; and how many have each key.

    Elements of one key keep their order.

    Args:
      key: from 0; NOWHERE for an element that gets no place.
      num_keys: how many keys there are.
    """
    if counts_natively():
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
