"""The strategies by name, and the configuration that chooses one."""

import dataclasses

from moe_jax.configuration import require, require_name
from moe_jax.experts.parallel.all_to_all import ALL_TO_ALL
from moe_jax.experts.parallel.dropless import DROPLESS
from moe_jax.experts.parallel.exchange import Wire
from moe_jax.experts.parallel.gather import GATHER
from moe_jax.experts.parallel.ragged import RAGGED
from moe_jax.experts.parallel.strategy import Strategy

# In the order in which `auto` tries them; the last fits always.
STRATEGIES: dict[str, Strategy] = {
    "ragged": RAGGED,
    "dropless": DROPLESS,
    "all_to_all": ALL_TO_ALL,
    "gather": GATHER,
}


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Exchange of tokens with experts on other devices; nothing changes on one device.

    Attributes:
      strategy: a name in STRATEGIES; `auto` takes the best for platform and shape among those that fit the execution.
      wire: type in which tokens and results travel; None takes the model's.
      slack: for `dropless`, rows that a device has room for from each other device, relative to an even load.
      rebalance_every: steps of training between changes of the experts' placement on devices; None never changes it.
    """

    strategy: str = "auto"
    wire: Wire | None = None
    slack: float = 1.5
    rebalance_every: int | None = None

    def __post_init__(self) -> None:
        require_name(self.strategy, ("auto", *STRATEGIES), "strategy")
        require(self.slack >= 1, "slack", self.slack, "a number of at least 1")
        every, accepted = self.rebalance_every, "an integer of at least 1, or None"
        require(every is None or every >= 1, "rebalance_every", every, accepted)
