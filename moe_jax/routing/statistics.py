"""Numbers made of sums, so that the parts of a batch add up to the number of the whole batch.

A mean is not the mean of the means of unequal parts, nor is a loss that multiplies two means the mean of such losses.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

METRICS = "routing"
SUMS = "routing_sums"


@struct.dataclass
class Statistic:
    """A number of a batch.

    Attributes:
      sums: arrays; those of a batch are the sums of those of its parts.
      finish: what makes the number of them (static, so a function with a name).
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    sums: tuple[Float[Array, "..."], ...]
    finish: Callable[..., Float[Array, "..."]] = struct.field(pytree_node=False)

    @property
    def value(self) -> Float[Array, "..."]:
        """The number."""
        return self.finish(*self.sums)


# By name: losses, and what else a router has to say.
Metrics = dict[str, Statistic]


def ratio(total: Float[Array, "*shape"], count: Float[Array, ""]) -> Float[Array, "*shape"]:
    """total / count, 0 of nothing."""
    return total / jnp.maximum(count, 1.0)


def mean_where(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Statistic:
    """The mean of `x` where `mask`; 0 where nothing is."""
    return Statistic((jnp.sum(jnp.where(mask, x, 0.0)), jnp.sum(mask, dtype=jnp.float32)), ratio)


def mean_of_parts(x: Float[Array, "..."]) -> Statistic:
    """A number that does not add up: of several parts, the mean of theirs."""
    return Statistic((x, jnp.float32(1.0)), ratio)


def sum_of_parts(x: Float[Array, "..."]) -> Statistic:
    """A number that is a sum itself."""
    return Statistic((x,), _itself)


def _itself(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x


def report(module: nn.Module, metrics: Mapping[str, Statistic]) -> None:
    """Sows each number into the collection `routing`, and what it is made of into `routing_sums`."""
    for name, statistic in metrics.items():
        module.sow(METRICS, name, statistic.value, init_fn=_nothing, reduce_fn=_last)
        module.sow(SUMS, name, statistic, init_fn=_nothing, reduce_fn=_last)


def values(sums: Any, stacked: bool = False) -> Any:
    """The numbers of a tree of statistics; `stacked` ones have a leading axis, as of layers that were scanned."""

    def value(statistic: Statistic) -> Float[Array, "..."]:
        return jax.vmap(statistic.finish)(*statistic.sums) if stacked else statistic.value

    return jax.tree.map(value, sums, is_leaf=lambda node: isinstance(node, Statistic))


def _nothing() -> None:
    return None


def _last(_: Any, new: Any) -> Any:
    return new
