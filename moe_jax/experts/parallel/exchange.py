"""Rows between the devices of the expert axis, in the type that the wire has."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from moe_jax.experts.parallel.indices import Transfer

AXIS = "expert"
Wire = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What a strategy knows of the devices.

    Attributes:
      devices: P, those on the expert axis.
      wire: the type in which rows travel; None leaves them as they are.
    """

    devices: int
    wire: Wire | None = None

    def swap(self, rows: Float[Array, "P *shape"]) -> Float[Array, "P *shape"]:
        """Gives device p what every device has for it at index p, by the device it comes from."""
        return self._sent(rows, lambda sent: jax.lax.all_to_all(sent, AXIS, 0, 0, tiled=True))

    def swap_numbers(self, numbers: Shaped[Array, "P *shape"]) -> Shaped[Array, "P *shape"]:
        """`swap` of what is counted, exactly as it is."""
        return jax.lax.all_to_all(numbers, AXIS, 0, 0, tiled=True)

    def collect(self, rows: Float[Array, "N *shape"]) -> Float[Array, "M *shape"]:
        """The rows of all devices, in their order."""
        return self._sent(rows, lambda sent: jax.lax.all_gather(sent, AXIS, tiled=True))

    def collect_numbers(self, numbers: Shaped[Array, "N *shape"]) -> Shaped[Array, "M *shape"]:
        """`collect` of what is decided, exactly as it is."""
        return jax.lax.all_gather(numbers, AXIS, tiled=True)

    def sum_and_share(self, rows: Float[Array, "M *shape"]) -> Float[Array, "N *shape"]:
        """Sums rows over devices and gives each device its own: the way back from `collect`."""
        return self._sent(rows, lambda sent: jax.lax.psum_scatter(sent, AXIS, tiled=True))

    def move(self, rows: Float[Array, "N D"], into: Float[Array, "M D"], transfer: Transfer) -> Float[Array, "M D"]:
        """`into`, with the runs of rows written to it that devices have for each other."""
        wire = self._wire(rows)
        moved = jax.lax.ragged_all_to_all(rows.astype(wire), into.astype(wire), *transfer, axis_name=AXIS)
        return moved.astype(rows.dtype)

    def _wire(self, rows: Float[Array, "..."]) -> jnp.dtype:
        return rows.dtype if self.wire is None else jnp.dtype(self.wire)

    def _sent(
        self, rows: Float[Array, "..."], send: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    ) -> Float[Array, "..."]:
        return send(rows.astype(self._wire(rows))).astype(rows.dtype)
