"""Verdicts on claims, and their figures in words."""

import dataclasses
import enum
import math
from typing import Literal

from moe_jax.statistics.intervals import Interval


class Outcome(enum.StrEnum):
    """The outcome of judging a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    INCONCLUSIVE = "inconclusive"
    PAPERS_DISAGREE = "papers disagree"
    NOT_RUN = "not run"
    NEEDS_ACCELERATOR = "needs an accelerator"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One claim's outcome and its evidence.

    Attributes:
      outcome: the outcome.
      figure: our number and its interval, in words; empty if nothing was measured.
      test: name of the statistical test; empty if nothing was measured.
      seeds: runs of each model.
      estimate: our number; None if nothing was measured.
      interval: 95% interval of `estimate`; None with too few seeds.
      reason: for an outcome that the interval does not explain; empty otherwise.
    """

    outcome: Outcome
    figure: str = ""
    test: str = ""
    seeds: int = 0
    estimate: float | None = None
    interval: Interval | None = None
    reason: str = ""


def decide(interval: Interval | None, low: float = -math.inf, high: float = math.inf) -> Outcome:
    """Returns `SUPPORTED` if all of `interval` lies between `low` and `high`, `NOT_SUPPORTED` if none of it does."""
    if interval is None:
        return Outcome.INCONCLUSIVE
    if low < interval[0] and interval[1] < high:
        return Outcome.SUPPORTED
    return Outcome.NOT_SUPPORTED if interval[1] <= low or high <= interval[0] else Outcome.INCONCLUSIVE


def on_side(interval: Interval | None, claimed: Literal["below", "above"], threshold: float = 0.0) -> Outcome:
    """Decides the claim that a quantity is below, or above, `threshold`."""
    return decide(interval, high=threshold) if claimed == "below" else decide(interval, low=threshold)


def signed(value: float, interval: Interval | None) -> str:
    """Writes a difference with its interval, if there is one."""
    return f"{value:+.4f}{_bracket(interval, '+.4f')}"


def plain(value: float, interval: Interval | None) -> str:
    """Writes a ratio with its interval, if there is one."""
    return f"{value:.2f}{_bracket(interval, '.2f')}"


def percent(value: float, interval: Interval | None) -> str:
    """Writes a share with its interval, if there is one."""
    return f"{value:.0%}{_bracket(interval, '.0%')}"


NO_CERTAIN_GAIN = "no certain gain to share"
"""The figure for a share of a gain that may be zero."""


def _bracket(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
