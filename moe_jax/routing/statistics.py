"""Statistics: metrics as sums, so that the parts of a batch add up to the metric of the whole batch.

The mean of a batch is not the mean of the means of its unequal parts, and a loss that multiplies two means is not the
mean of such losses. So a router reports sums and the function that makes the metric of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

METRICS = "routing"
"""The collection of variables into which modules sow statistics, by name."""


@struct.dataclass
class Statistic:
    """A metric of a batch, as sums over its tokens and what they make.

    Attributes:
      sums: arrays; the sums of a batch are the sums of its parts, added up.
      finish: computes the metric from the sums (static, so a function with a name, and not a new one at each call).
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    sums: tuple[Float[Array, "..."], ...]
    finish: Callable[..., Float[Array, "..."]] = struct.field(pytree_node=False)

    @property
    def value(self) -> Float[Array, "..."]:
        """The metric."""
        return self.finish(*self.sums)


Metrics = dict[str, Statistic]
"""Losses and other metrics of one router, by name."""


def ratio(total: Float[Array | np.ndarray, "*shape"], count: Float[Array | np.ndarray, ""]) -> Float[Array, "*shape"]:
    """Divides `total` by `count`, or by 1 where that is less."""
    return total / jnp.maximum(count, 1.0)


def mean_where(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Statistic:
    """Returns the mean of `x` where `mask` is true; 0 where it is nowhere."""
    return Statistic((jnp.sum(jnp.where(mask, x, 0.0)), jnp.sum(mask, dtype=jnp.float32)), ratio)


def mean_of_parts(x: Float[Array, "..."]) -> Statistic:
    """Returns a metric that cannot be summed over parts of a batch; the mean of the parts is reported."""
    return Statistic((x, jnp.float32(1.0)), ratio)


def sum_of_parts(x: Float[Array, "..."]) -> Statistic:
    """Returns a metric that is itself a sum."""
    return Statistic((x,), _identity)


def _identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x


def report(module: nn.Module, metrics: Mapping[str, Statistic]) -> None:
    """Sows each statistic into the collection `routing` of `module`.

    A reader takes a statistic's `value`, or `values` of a whole collection.
    """
    for name, statistic in metrics.items():
        module.sow(METRICS, name, statistic, init_fn=_nothing, reduce_fn=_last)


def values(statistics: Any, stacked: bool = False) -> Any:
    """Computes the metrics of a tree of statistics.

    Args:
      statistics: mappings of statistics, nested, such as the collection `routing`.
      stacked: whether all sums have a leading axis, as those of scanned layers do; the metrics then have it, too.
    """

    def value(statistic: Statistic) -> Float[Array, "..."]:
        return jax.vmap(statistic.finish)(*statistic.sums) if stacked else statistic.value

    return jax.tree.map(value, statistics, is_leaf=lambda node: isinstance(node, Statistic))


def _nothing() -> None:
    return None


def _last(_: Any, new: Any) -> Any:
    return new
