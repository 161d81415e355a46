"""Statistics: metrics kept as sums, so that those of the parts of a batch add up to those of the whole batch.

A part is what gradient accumulation takes at a time. If parts hold different numbers of tokens, the mean of their means
is not the mean of the batch; and if a loss multiplies two means of a batch, the mean over parts of such products is
another number. So a router reports sums, and the function that computes the metric from them. Two parts are joined by
adding their statistics: `jax.tree.map(jnp.add, first, second)`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from moe_jax.runtime.arguments import typed

METRICS = "routing"
"""Name of the Flax collection that holds sown statistics."""


@struct.dataclass
class Statistic:
    """A metric of a batch: sums over its tokens, and the function that computes the metric from them.

    Attributes:
      sums: arrays, which add over the parts of the batch.
      finish: computes the metric from the sums. It is static: a new lambda at each call would be compiled anew.
    """

    # For jaxtyping: tree maps put other things than arrays into the fields, so their types are not checked.
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
    """Divides `total` by `count`, a number of tokens or parts; by 1 if that is 0."""
    return total / jnp.maximum(count, 1.0)


@typed
def mean_where(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Statistic:
    """Returns the scalar mean of `x` where `mask` is true; 0 if it is true nowhere."""
    return Statistic((jnp.sum(jnp.where(mask, x, 0.0)), jnp.sum(mask, dtype=jnp.float32)), ratio)


def mean_of_parts(x: Float[Array, "..."]) -> Statistic:
    """Returns a metric that does not add over parts, such as a maximum; parts are averaged with equal weights."""
    return Statistic((x, jnp.float32(1.0)), ratio)


def sum_of_parts(x: Float[Array, "..."]) -> Statistic:
    """Returns a metric that is itself a sum, such as a count."""
    return Statistic((x,), _identity)


def _identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x


def report(module: nn.Module, metrics: Mapping[str, Statistic]) -> None:
    """Sows each statistic into the collection `routing` of `module`, where `apply` has it in `mutable`.

    A second report of a name replaces the first. A reader takes a statistic's `value`, or `values` of the collection.
    """
    for name, statistic in metrics.items():
        module.sow(METRICS, name, statistic, init_fn=_nothing, reduce_fn=_last)


def values(statistics: Any, stacked: bool = False) -> Any:
    """Computes the metrics of a tree of statistics.

    Args:
      statistics: mappings of statistics, nested, such as the collection `routing`.
      stacked: whether all sums have a leading axis of layers, as under a scan; the metrics then keep it.
    """

    def value(statistic: Statistic) -> Float[Array, "..."]:
        return jax.vmap(statistic.finish)(*statistic.sums) if stacked else statistic.value

    return jax.tree.map(value, statistics, is_leaf=lambda node: isinstance(node, Statistic))


def _nothing() -> None:
    return None


def _last(_: Any, new: Any) -> Any:
    return new
