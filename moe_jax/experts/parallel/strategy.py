"""Which strategy brings tokens to the devices of their experts: as configured, or the best for platform and shape."""

import dataclasses
from typing import Literal

from moe_jax.configuration import require
from moe_jax.experts.parallel.exchange import Wire

Strategy = Literal["all_to_all", "dropless", "gather", "ragged"]
Choice = Literal["auto", "all_to_all", "dropless", "gather", "ragged"]

# The way of running experts that a strategy is made of; `gather` takes any.
RUNS_AS: dict[str, str] = {"all_to_all": "padded", "dropless": "dropless", "ragged": "dropless"}


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How tokens reach experts on other devices; without a mesh that has several on its expert axis nothing changes.

    Attributes:
      strategy: `all_to_all`, `gather`, `dropless` or `ragged`; `auto` takes the best for platform and shape among
        those that run experts by `model.moe.execution`.
      wire: type in which tokens and results travel; None takes the model's.
      slack: for `dropless`, how many rows a device has room for from each other one, relative to an even load.
      rebalance_every: steps of training between changes of which device has which expert; None never changes it.
    """

    strategy: Choice = "auto"
    wire: Wire | None = None
    slack: float = 1.5
    rebalance_every: int | None = None

    def __post_init__(self) -> None:
        require(self.slack >= 1, "slack", self.slack, "a number of at least 1")
        every, accepted = self.rebalance_every, "an integer of at least 1, or None"
        require(every is None or every >= 1, "rebalance_every", every, accepted)


def choose_strategy(
    config: ParallelConfig, execution: str, platform: str, devices: int, rows_per_token: float
) -> Strategy:
    """The strategy that runs.

    Args:
      config: what is asked for.
      execution: how experts are to be run, a name in EXECUTIONS.
      platform: `cpu`, `gpu`, `tpu`, as jax calls it.
      devices: on the expert axis.
      rows_per_token: how often a token is sent, on average: capacity_factor * k, or k where nothing is dropped.

    Raises:
      ConfigError: the platform lacks what is asked for, or it runs experts in another way than `execution`.
    """
    strategy = config.strategy
    if strategy == "auto":
        fitting = [
            name for name, run in RUNS_AS.items() if run == execution and not (name == "ragged" and platform != "tpu")
        ]
        # Every token to every device costs P - 1 rows each way, its choices rows_per_token * (1 - 1 / P).
        return fitting[-1] if fitting and devices > max(1.0, rows_per_token) else "gather"
    runs = RUNS_AS.get(strategy, execution)
    accepted = f"auto, gather or another that runs experts as execution={execution!r} says; {runs!r} goes with this"
    require(runs == execution, "strategy", strategy, accepted)
    require(
        strategy != "ragged" or platform != "cpu",
        "strategy",
        strategy,
        f"dropless, all_to_all or gather on platform {platform!r}, which cannot exchange ragged arrays",
    )
    return strategy
