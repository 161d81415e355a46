"""Rules that compare a metric of models: its difference, equality, and order."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from moe_jax.claims.rule import ALPHA, Better, Rule, Side, require_distinct, unit
from moe_jax.claims.verdicts import Outcome, Verdict, decide, on_side, signed
from moe_jax.configuration import require
from moe_jax.results.measures import Runs, differences
from moe_jax.statistics.estimates import estimate
from moe_jax.statistics.intervals import mean_interval
from moe_jax.statistics.p_values import holm, mean_p_value


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
        require_distinct(self.models, "baseline")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.baseline)

    def judge(self, runs: Runs) -> Verdict:
        found = estimate(differences(runs, self.model, self.baseline, self.metric))
        figure = f"{signed(found.mean, found.interval)} {unit(self.metric)} ({self.model} - {self.baseline})"
        outcome = on_side(found.interval, self.claimed, self.threshold)
        return Verdict(outcome, figure, self.test, found.n, found.mean, found.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equal(Rule):
    """A metric of `model` equals that of `baseline` within `margin`.

    Supported if the 90% interval of the difference lies within the margin, which is two one-sided tests at 5%. Not
    supported if its 95% interval lies outside.
    """

    test: ClassVar[str] = "two one-sided paired t"
    model: str
    baseline: str
    margin: float
    metric: str = "loss"

    def __post_init__(self) -> None:
        require_distinct(self.models, "baseline")
        require(self.margin > 0, "margin", self.margin, "a number above 0")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.baseline)

    def judge(self, runs: Runs) -> Verdict:
        values = differences(runs, self.model, self.baseline, self.metric)
        found = estimate(values)
        figure = f"{signed(found.mean, found.interval)} {unit(self.metric)} ({self.model} - {self.baseline})"
        outcome = decide(found.interval, -self.margin, self.margin)
        if outcome is Outcome.INCONCLUSIVE and found.n > 1:
            narrow = decide(mean_interval(values, 0.90), -self.margin, self.margin)
            outcome = narrow if narrow is Outcome.SUPPORTED else outcome
        return Verdict(outcome, figure, self.test, found.n, found.mean, found.interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Rule):
    """The first model of each of `pairs` is better than the second.

    Supported if all are. Not supported if one is significantly worse. The verdict's estimate is that of the least
    certain pair.
    """

    test: ClassVar[str] = "paired t, Holm"
    pairs: tuple[tuple[str, ...], ...]
    better: Better = "lower"
    metric: str = "loss"

    def __post_init__(self) -> None:
        fits = bool(self.pairs) and all(len(pair) == 2 and pair[0] != pair[1] for pair in self.pairs)
        require(fits, "pairs", self.pairs, "one or more pairs of two models, the better one first")

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
        require(len(self.order) > 1, "order", self.order, "two models or more, the best one last")
        require_distinct(self.order, "order")

    @property
    def models(self) -> tuple[str, ...]:
        return self.order

    def judge(self, runs: Runs) -> Verdict:
        pairs = [(after, before) for before, after in zip(self.order, self.order[1:], strict=False)]
        return _judge_pairs(runs, pairs, self.better, self.metric, self.test)


def _judge_pairs(runs: Runs, pairs: Sequence[Sequence[str]], better: Better, metric: str, test: str) -> Verdict:
    """Judges whether the first model of each pair is better than the second, by p values adjusted for several tests."""
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
        f"{signed(found.mean, found.interval)} {unit(metric)} ({first} - {second}{'' if one_seed else f', p {p:.3f}'})"
        for (first, second), found, p in zip(pairs, estimates, p_values, strict=True)
    ]
    found = estimates[sure.index(min(sure))]
    return Verdict(outcome, "; ".join(figures), test, found.n, found.mean, found.interval)
