"""Exchange of rows between the devices of the expert axis.

P devices on the expert axis, N and M rows, D model width.
"""

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
    """The collectives of a strategy, and the settings of what travels.

    Attributes:
      devices: P.
      wire: type in which rows travel; None leaves them in theirs.
      slack: rows that bounded buffers hold, relative to an even load.
    """

    devices: int
    wire: Wire | None = None
    slack: float = 1.5

    def swap(self, rows: Float[Array, "P *shape"]) -> Float[Array, "P *shape"]:
        """Sends rows[p] to device p; returns, at index p, the rows from device p."""
        return self._sent(rows, lambda sent: jax.lax.all_to_all(sent, AXIS, 0, 0, tiled=True))

    def swap_numbers(self, numbers: Shaped[Array, "P *shape"]) -> Shaped[Array, "P *shape"]:
        """Does as `swap`, without changing the type: for counts."""
        return jax.lax.all_to_all(numbers, AXIS, 0, 0, tiled=True)

    def collect(self, rows: Float[Array, "N *shape"]) -> Float[Array, "M *shape"]:
        """Returns the rows of all devices, in order of device."""
        return self._sent(rows, lambda sent: jax.lax.all_gather(sent, AXIS, tiled=True))

    def collect_numbers(self, numbers: Shaped[Array, "N *shape"]) -> Shaped[Array, "M *shape"]:
        """Does as `collect`, without changing the type: for assignments and counts."""
        return jax.lax.all_gather(numbers, AXIS, tiled=True)

    def sum_and_share(self, rows: Float[Array, "M *shape"]) -> Float[Array, "N *shape"]:
        """Sums rows over devices and gives each device its part: the way back from `collect`."""
        return self._sent(rows, lambda sent: jax.lax.psum_scatter(sent, AXIS, tiled=True))

    def move(self, rows: Float[Array, "N D"], into: Float[Array, "M D"], transfer: Transfer) -> Float[Array, "M D"]:
        """Sends runs of rows as `transfer` says; returns `into` with the received runs written to it."""
        wire = self._wire(rows)
        moved = jax.lax.ragged_all_to_all(rows.astype(wire), into.astype(wire), *transfer, axis_name=AXIS)
        return moved.astype(rows.dtype)

    def _wire(self, rows: Float[Array, "..."]) -> jnp.dtype:
        return rows.dtype if self.wire is None else jnp.dtype(self.wire)

    def _sent(
        self, rows: Float[Array, "..."], send: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    ) -> Float[Array, "..."]:
        return send(rows.astype(self._wire(rows))).astype(rows.dtype)
