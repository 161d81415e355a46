"""Rules on what seeds do: their spread, and the share that diverges."""

import dataclasses
from typing import ClassVar

from moe_jax.claims.rule import Rule, Side, require_distinct
from moe_jax.claims.verdicts import Outcome, Verdict, decide, on_side, percent, plain
from moe_jax.configuration import require
from moe_jax.results.measures import Runs, diverged, values_of
from moe_jax.statistics.intervals import pitman_morgan, proportion_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread(Rule):
    """The standard deviation over seeds of a metric of `model` is below `threshold` times that of `baseline`."""

    test: ClassVar[str] = "Pitman-Morgan"
    model: str
    baseline: str
    threshold: float = 1.0
    metric: str = "loss"

    def __post_init__(self) -> None:
        require_distinct(self.models, "baseline")
        require(0 < self.threshold <= 1, "threshold", self.threshold, "a number above 0 and of at most 1")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.baseline)

    def judge(self, runs: Runs) -> Verdict:
        own, other = (values_of(runs, name, self.metric) for name in self.models)
        found = pitman_morgan(own, other)
        if found is None:
            reason = "three seeds or more are needed, in which neither model's values follow from the other's"
            return Verdict(Outcome.INCONCLUSIVE, "", self.test, len(own), reason=reason)
        ratio, interval = found
        figure = f"{plain(ratio, interval)} times the standard deviation ({self.model} over {self.baseline})"
        return Verdict(decide(interval, high=self.threshold), figure, self.test, len(own), ratio, interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diverges(Rule):
    """The share of runs of `model` that diverge lies on the claimed side of `threshold`."""

    test: ClassVar[str] = "Clopper-Pearson"
    counts_divergence: ClassVar[bool] = True
    model: str
    claimed: Side = "above"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.threshold < 1, "threshold", self.threshold, "a number between 0 and 1")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    def judge(self, runs: Runs) -> Verdict:
        rows = runs[self.model]
        count = sum(map(diverged, rows))
        share, interval = count / len(rows), proportion_interval(count, len(rows), method="exact")
        figure = f"{count} of {len(rows)} runs of {self.model} diverge, {percent(share, interval)}"
        return Verdict(on_side(interval, self.claimed, self.threshold), figure, self.test, len(rows), share, interval)
