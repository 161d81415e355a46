"""The interface of a strategy: a way of bringing tokens to the devices of their experts, and results back.

G groups of one device, S tokens of a group, D model width, O output width (D; F for linear experts).
"""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from moe_jax.experts.execution import Run
from moe_jax.experts.ffn import FFNKind, FFNParams
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.routing.assignment import Assignment

Metrics = dict[str, Float[Array, ""]]
"""The numbers that a strategy counts, by name; the same on all devices."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way of bringing tokens to the devices of their experts.

    Attributes:
      run: (x, assignment, params, kind, exchange, run) -> (y, metrics), called on each device within `shard_map`. It
        gets the device's own tokens x [G, S, D] and their assignment to the experts of all devices, the parameters of
        its own experts, and the execution that runs experts on one device; it returns the tokens' results [G, S, O].
      execution: name of the execution that it is made of; None takes any.
      platforms: platforms that can run it.
      preferred_on: platforms on which `auto` takes it, if it fits the execution and the shape.
    """

    run: Callable[
        [Float[Array, "G S D"], Assignment, FFNParams, FFNKind, Exchange, Run], tuple[Float[Array, "G S O"], Metrics]
    ]
    execution: str | None
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    preferred_on: tuple[str, ...] = ()

    def fits(self, execution: str, platform: str) -> bool:
        """Returns whether it can run experts by `execution` on `platform`."""
        return self.execution in (None, execution) and platform in self.platforms
