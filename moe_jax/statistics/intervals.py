"""Confidence intervals from few seeds: of means, proportions, shares and ratios of spreads."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Returns Student's t confidence interval of the mean of two or more values."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(level)
    return float(low), float(high)


def proportion_interval(successes: int, trials: int, method: Literal["wilson", "exact"] = "wilson") -> Interval:
    """Returns the 95% confidence interval of a proportion, from at least one independent trial.

    Args:
      successes: trials that succeeded.
      trials: all of them.
      method: `wilson` is Wilson's (1927), which covers 95% on average; `exact` is Clopper and Pearson's (1934), which
        covers at least 95% whatever the proportion, and is wider.
    """
    low, high = stats.binomtest(successes, trials).proportion_ci(method=method)
    return float(low), float(high)


def fieller_interval(parts: Sequence[float], wholes: Sequence[float]) -> Interval | None:
    """Returns the 95% confidence interval of mean(parts) / mean(wholes); entries at one index come from one seed.

    Fieller (1954): the interval holds every share that a t test of `part - share * whole` does not reject. It is exact
    for normal pairs however few. A bootstrap of three seeds has ten samples to draw, and its intervals are far too
    short.

    Returns:
      None if the mean of the wholes could be 0, because then the interval has no end on one side at least.
    """
    t = float(stats.t.ppf(0.975, len(parts) - 1))
    part, whole = float(np.mean(parts)), float(np.mean(wholes))
    (var_part, both), (_, var_whole) = t**2 / len(parts) * np.cov(parts, wholes)
    # The ends are the roots of a * share^2 - 2 * b * share + c.
    a, b, c = whole**2 - var_whole, part * whole - both, part**2 - var_part
    if a <= 0:
        return None
    width = math.sqrt(max(0.0, b**2 - a * c))
    return float((b - width) / a), float((b + width) / a)


def pitman_morgan(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, Interval] | None:
    """Returns the standard deviation of `values` over that of `baseline`, with its 95% interval.

    Entries at one index are a pair. The interval inverts the test of Pitman and Morgan (1939), which is exact for
    normal pairs. An F test would assume that the two are independent, which runs of one seed are not.

    Returns:
      None for fewer than three pairs, and if one of the two does not vary or follows from the other.
    """
    n = len(values)
    if n < 3 or min(np.std(values), np.std(baseline)) < 1e-9:
        return None
    unexplained = 1 - float(np.corrcoef(values, baseline)[0, 1]) ** 2
    if unexplained < 1e-12:
        return None
    ratio = float(np.std(values) / np.std(baseline))
    t = float(stats.t.ppf(0.975, n - 2))
    k = 1 + 2 * unexplained * t**2 / (n - 2)
    # (k - sqrt(k^2 - 1)) is 1 / (k + sqrt(k^2 - 1)), and this way it is not a difference of large numbers.
    factor = math.sqrt(k + math.sqrt(k**2 - 1))
    return ratio, (ratio / factor, ratio * factor)
