"""Rules that decide a claim from rows of results, each with one statistical test and no judgement left to make.

A rule is written before its study runs. Every rule compares runs of one seed with each other, calls nothing supported
from a single seed, and gives no figure for models of which a run diverged, unless that is what it counts.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from scipy import stats

from moe_jax.claims.verdicts import NO_CERTAIN_GAIN, Outcome, Verdict, decide, on_side, percent, plain, signed
from moe_jax.configuration import require
from moe_jax.results.measures import Runs, differences, diverged, values_of
from moe_jax.results.rows import Row
from moe_jax.results.summary import COSTS, experts_of, summarize
from moe_jax.statistics.estimates import estimate
from moe_jax.statistics.intervals import Interval, fieller_interval, mean_interval, pitman_morgan, proportion_interval
from moe_jax.statistics.p_values import holm, mean_p_value

Side = Literal["below", "above"]
Better = Literal["lower", "higher"]
ALPHA = 0.05
"""Of tests that compare p values; intervals are of 1 - ALPHA."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """What decides a claim; its fields are what a claim file has under `[rule]`.

    Attributes:
      test: name of the statistical test.
      counts_divergence: whether it has something to say of runs that diverged.
    """

    test: ClassVar[str]
    counts_divergence: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def models(self) -> tuple[str, ...]:
        """Names of the models whose runs it reads."""

    @abc.abstractmethod
    def judge(self, runs: Runs) -> Verdict:
        """The verdict on runs of at least one seed, none of which diverged unless the rule counts that."""

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """What the rule says of a study's rows, of which it takes its own models and the seeds they have in common.

        Raises:
          ConfigError: the rows lack the metric.
        """
        runs = {name: {row["seed"]: row for row in rows if row["name"] == name} for name in self.models}
        missing = [name for name, by_seed in runs.items() if not by_seed]
        if missing:
            return Verdict(Outcome.NOT_RUN, reason=f"no runs of {', '.join(missing)}")
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
        if not seeds:
            return Verdict(Outcome.INCONCLUSIVE, reason="no seed in common")
        if not self.counts_divergence:
            lost = {name: sum(map(diverged, by_seed.values())) for name, by_seed in runs.items()}
            counts = [f"{count} of {len(runs[name])} runs of {name}" for name, count in lost.items() if count]
            if counts:
                reason = f"diverged: {', '.join(counts)}"
                return Verdict(Outcome.INCONCLUSIVE, test=self.test, seeds=len(seeds), reason=reason)
        found = self.judge({name: [by_seed[seed] for seed in seeds] for name, by_seed in runs.items()})
        if len(seeds) == 1:
            return dataclasses.replace(found, outcome=Outcome.INCONCLUSIVE, reason="one seed")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(Rule):
    """A metric of `model` minus that of `baseline` lies on the claimed side of `threshold`."""

    test: ClassVar[str] = "paired t"
    model: str
    baseline: str
    claimed: Side = "below"
    threshold: float = 0.0
    metric: str = "loss"

    def __post_init__(self) -> None:
        _require_distinct(self.models, "rule.baseline")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.baseline)

    def judge(self, runs: Runs) -> Verdict:
        found = estimate(differences(runs, self.model, self.baseline, self.metric))
        figure = f"{signed(found.mean, found.interval)} {_unit(self.metric)} ({self.model} - {self.baseline})"
        outcome = on_side(found.interval, self.claimed, self.threshold)
        return Verdict(outcome, figure, self.test, found.n, found.mean, found.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equal(Rule):
    """A metric of `model` is that of `baseline` within `margin`: supported where its 90% interval lies within, which is
    what two one-sided tests at 5% say, and not supported where its 95% interval lies outside.
    """

    test: ClassVar[str] = "two one-sided paired t"
    model: str
    baseline: str
    margin: float
    metric: str = "loss"

    def __post_init__(self) -> None:
        _require_distinct(self.models, "rule.baseline")
        require(self.margin > 0, "rule.margin", self.margin, "a number above 0")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.baseline)

    def judge(self, runs: Runs) -> Verdict:
        values = differences(runs, self.model, self.baseline, self.metric)
        found = estimate(values)
        figure = f"{signed(found.mean, found.interval)} {_unit(self.metric)} ({self.model} - {self.baseline})"
        outcome = decide(found.interval, -self.margin, self.margin)
        if outcome is Outcome.INCONCLUSIVE and found.n > 1:
            narrow = decide(mean_interval(values, 0.90), -self.margin, self.margin)
            outcome = narrow if narrow is Outcome.SUPPORTED else outcome
        return Verdict(outcome, figure, self.test, found.n, found.mean, found.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Rule):
    """In each of `pairs` the first model is better than the second: supported where all are, not supported where one is
    significantly the other way round. The verdict's estimate is that of the pair least sure to be as claimed.
    """

    test: ClassVar[str] = "paired t, Holm"
    pairs: tuple[tuple[str, ...], ...]
    better: Better = "lower"
    metric: str = "loss"

    def __post_init__(self) -> None:
        fits = bool(self.pairs) and all(len(pair) == 2 and pair[0] != pair[1] for pair in self.pairs)
        require(fits, "rule.pairs", self.pairs, "one or more pairs of two models, the better one first")

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    def judge(self, runs: Runs) -> Verdict:
        return _judge_pairs(runs, self.pairs, self.better, self.metric, self.test)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order(Rule):
    """Each of `order` is better than the one before: the rule `pairs` for its neighbours."""

    test: ClassVar[str] = "paired t, Holm"
    order: tuple[str, ...]
    better: Better = "lower"
    metric: str = "loss"

    def __post_init__(self) -> None:
        require(len(self.order) > 1, "rule.order", self.order, "two models or more, the best one last")
        _require_distinct(self.order, "rule.order")

    @property
    def models(self) -> tuple[str, ...]:
        return self.order

    def judge(self, runs: Runs) -> Verdict:
        pairs = [(after, before) for before, after in zip(self.order, self.order[1:], strict=False)]
        return _judge_pairs(runs, pairs, self.better, self.metric, self.test)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monotone(Rule):
    """The slope of a metric against log2 of the number of experts has the claimed sign; a dense model is one expert."""

    test: ClassVar[str] = "t of slopes per seed"
    sizes: tuple[str, ...]
    claimed: Side = "below"
    metric: str = "loss"

    def __post_init__(self) -> None:
        require(len(self.sizes) > 2, "rule.sizes", self.sizes, "three models or more")
        _require_distinct(self.sizes, "rule.sizes")

    @property
    def models(self) -> tuple[str, ...]:
        return self.sizes

    def judge(self, runs: Runs) -> Verdict:
        doublings = np.log2([max(1, experts_of(runs[name][0])) for name in self.sizes])
        require(len(set(doublings)) > 1, "rule.sizes", self.sizes, "models that differ in their number of experts")
        values = np.array([values_of(runs, name, self.metric) for name in self.sizes])
        found = estimate([float(stats.linregress(doublings, of_seed).slope) for of_seed in values.T])
        figure = f"{signed(found.mean, found.interval)} {_unit(self.metric)} per doubling of the experts"
        return Verdict(on_side(found.interval, self.claimed), figure, self.test, found.n, found.mean, found.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedUp(Rule):
    """`baseline` spends more than `threshold` times what `model` spends, of `cost`, to reach baseline's final loss.

    Where a seed does not reach that loss there is no ratio: not supported if the model's final loss is significantly
    above the baseline's, else inconclusive.
    """

    test: ClassVar[str] = "paired t"
    model: str
    baseline: str
    cost: Literal["step", "flops", "seconds"] = "step"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        _require_distinct(self.models, "rule.baseline")
        require(self.threshold >= 1, "rule.threshold", self.threshold, "a number of at least 1")

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
    """Of what `best` gains over `base`, the share that `model` gains lies between `low` and `high`."""

    test: ClassVar[str] = "Fieller"
    model: str
    base: str
    best: str
    low: float | None = None
    high: float | None = None
    better: Better = "lower"
    metric: str = "loss"

    def __post_init__(self) -> None:
        _require_distinct(self.models, "rule.best")
        low, high = self._range
        require(math.isfinite(low) or math.isfinite(high), "rule.low", self.low, "a number, or rule.high")
        require(low < high, "rule.high", self.high, "a number above rule.low")

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread(Rule):
    """Over seeds, the standard deviation of a metric of `model` is below `threshold` times that of `baseline`."""

    test: ClassVar[str] = "Pitman-Morgan"
    model: str
    baseline: str
    threshold: float = 1.0
    metric: str = "loss"

    def __post_init__(self) -> None:
        _require_distinct(self.models, "rule.baseline")
        require(0 < self.threshold <= 1, "rule.threshold", self.threshold, "a number above 0 and of at most 1")

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
        require(0 < self.threshold < 1, "rule.threshold", self.threshold, "a number between 0 and 1")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    def judge(self, runs: Runs) -> Verdict:
        rows = runs[self.model]
        count = sum(map(diverged, rows))
        share, interval = count / len(rows), proportion_interval(count, len(rows), method="exact")
        figure = f"{count} of {len(rows)} runs of {self.model} diverge, {percent(share, interval)}"
        return Verdict(on_side(interval, self.claimed, self.threshold), figure, self.test, len(rows), share, interval)


def _judge_pairs(runs: Runs, pairs: Sequence[Sequence[str]], better: Better, metric: str, test: str) -> Verdict:
    """Whether the first model of each pair is better than the second, by p values adjusted for being several."""
    samples = [differences(runs, first, second, metric) for first, second in pairs]
    estimates = [estimate(values) for values in samples]
    sign = -1 if better == "lower" else 1
    one_seed = estimates[0].n == 1
    p_values = [1.0] * len(pairs) if one_seed else holm([mean_p_value(values) for values in samples])
    # 1 - p, negative for a pair the other way round.
    sure = [math.copysign(1 - p, sign * found.mean) for p, found in zip(p_values, estimates, strict=True)]
    outcome = Outcome.NOT_SUPPORTED if min(sure) < ALPHA - 1 else Outcome.INCONCLUSIVE
    outcome = Outcome.SUPPORTED if min(sure) > 1 - ALPHA else outcome
    figures = [
        f"{signed(found.mean, found.interval)} {_unit(metric)} ({first} - {second}{'' if one_seed else f', p {p:.3f}'})"
        for (first, second), found, p in zip(pairs, estimates, p_values, strict=True)
    ]
    found = estimates[sure.index(min(sure))]
    return Verdict(outcome, "; ".join(figures), test, found.n, found.mean, found.interval)


def _require_distinct(models: Sequence[str], field: str) -> None:
    require(len(set(models)) == len(models), field, models[-1], "models that differ from each other")


def _unit(metric: str) -> str:
    return "nats" if metric == "loss" else metric


RULES: dict[str, type[Rule]] = {
    "difference": Difference,
    "equal": Equal,
    "pairs": Pairs,
    "order": Order,
    "monotone": Monotone,
    "speed_up": SpeedUp,
    "share_of_gain": ShareOfGain,
    "spread": Spread,
    "diverges": Diverges,
}
