"""Rules on gains: with more experts, in the cost of a loss, and as a share of another model's gain."""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np
from scipy import stats

from moe_jax.claims.rule import Better, Rule, Side, require_distinct, unit
from moe_jax.claims.verdicts import NO_CERTAIN_GAIN, Outcome, Verdict, decide, on_side, percent, plain, signed
from moe_jax.configuration import require
from moe_jax.results.measures import Runs, differences, values_of
from moe_jax.results.summary import COSTS, experts_of, summarize
from moe_jax.statistics.estimates import estimate
from moe_jax.statistics.intervals import Interval, fieller_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monotone(Rule):
    """The slope of a metric against log2 of the number of experts has the claimed sign; a dense model is one expert."""

    test: ClassVar[str] = "t of slopes per seed"
    sizes: tuple[str, ...]
    claimed: Side = "below"
    metric: str = "loss"

    def __post_init__(self) -> None:
        require(len(self.sizes) > 2, "sizes", self.sizes, "three models or more")
        require_distinct(self.sizes, "sizes")

    @property
    def models(self) -> tuple[str, ...]:
        return self.sizes

    def judge(self, runs: Runs) -> Verdict:
        doublings = np.log2([max(1, experts_of(runs[name][0])) for name in self.sizes])
        require(len(set(doublings)) > 1, "sizes", self.sizes, "models that differ in their number of experts")
        values = np.array([values_of(runs, name, self.metric) for name in self.sizes])
        found = estimate([float(stats.linregress(doublings, of_seed).slope) for of_seed in values.T])
        figure = f"{signed(found.mean, found.interval)} {unit(self.metric)} per doubling of the experts"
        return Verdict(on_side(found.interval, self.claimed), figure, self.test, found.n, found.mean, found.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedUp(Rule):
    """The baseline's final loss costs `baseline` more than `threshold` times as much as `model`.

    If a seed does not reach that loss there is no ratio. The claim is then not supported if the model's final loss is
    significantly above the baseline's, and inconclusive otherwise.
    """

    test: ClassVar[str] = "paired t"
    model: str
    baseline: str
    cost: Literal["step", "flops", "seconds"] = "step"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        require_distinct(self.models, "baseline")
        require(self.threshold >= 1, "threshold", self.threshold, "a number of at least 1")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.baseline)

    def judge(self, runs: Runs) -> Verdict:
        summaries = summarize([row for rows in runs.values() for row in rows], self.baseline)
        (summary,) = [summary for summary in summaries if summary.name == self.model]
        speed_up, short = summary.speed_up[self.cost], summary.difference
        if speed_up.ratio is None:
            worse = decide(short.interval, low=0.0) is Outcome.SUPPORTED
            outcome = Outcome.NOT_SUPPORTED if worse else Outcome.INCONCLUSIVE
            figure = f"{speed_up.reached} of {speed_up.seeds} seeds reach the final loss of {self.baseline}"
            reason = f"{self.model} ends {signed(short.mean, short.interval)} nats from it"
            return Verdict(outcome, figure, self.test, speed_up.seeds, reason=reason)
        ratio = speed_up.ratio
        speed = plain(ratio.mean, ratio.interval)
        figure = f"speed-up of {speed} in {COSTS[self.cost]} ({self.model} over {self.baseline})"
        outcome = decide(ratio.interval, low=self.threshold)
        return Verdict(outcome, figure, self.test, ratio.n, ratio.mean, ratio.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareOfGain(Rule):
    """The gain of `model` over `base`, as a share of the gain of `best`, lies between `low` and `high`."""

    test: ClassVar[str] = "Fieller"
    model: str
    base: str
    best: str
    low: float | None = None
    high: float | None = None
    better: Better = "lower"
    metric: str = "loss"

    def __post_init__(self) -> None:
        require_distinct(self.models, "best")
        low, high = self._range
        require(math.isfinite(low) or math.isfinite(high), "low", self.low, "a number, or high")
        require(low < high, "high", self.high, "a number above low")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.base, self.best)

    @property
    def _range(self) -> Interval:
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def judge(self, runs: Runs) -> Verdict:
        sign = 1 if self.better == "lower" else -1
        parts = [sign * value for value in differences(runs, self.base, self.model, self.metric)]
        wholes = [sign * value for value in differences(runs, self.base, self.best, self.metric)]
        if decide(estimate(wholes).interval, low=0.0) is not Outcome.SUPPORTED:
            reason = f"{self.best} is not certain to be better than {self.base}"
            return Verdict(Outcome.INCONCLUSIVE, NO_CERTAIN_GAIN, self.test, len(parts), reason=reason)
        share, interval = float(np.mean(parts) / np.mean(wholes)), fieller_interval(parts, wholes)
        figure = f"{percent(share, interval)} of the gain of {self.best} ({self.model})"
        return Verdict(decide(interval, *self._range), figure, self.test, len(parts), share, interval)
