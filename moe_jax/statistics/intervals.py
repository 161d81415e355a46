"""Confidence intervals from few seeds: of means, proportions, shares and ratios of spreads."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def interval_of_mean(values: Sequence[float], level: float) -> Interval:
    """Student's t confidence interval of the mean of two or more values at `level`, such as 0.95."""
    error = float(stats.sem(values))
    margin = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    mean = float(np.mean(values))
    return mean - margin, mean + margin


def interval_of_share(parts: Sequence[float], wholes: Sequence[float]) -> Interval | None:
    """95% confidence interval of mean(parts) / mean(wholes), where the entries at one index come from one seed.

    Fieller's 1954: the shares that a t test of `part - share * whole` does not reject. It is exact for normal pairs
    however few; a bootstrap of three seeds has ten samples to draw, and its intervals are far too short.

    Returns:
      None where the wholes could be 0, so that no share can be excluded on one side at least.
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


def ratio_of_spreads(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, Interval] | None:
    """Standard deviation of `values` over that of `baseline`, with its 95% interval; entries at one index are a pair.

    It inverts the test of Pitman and Morgan (1939), which is exact for normal pairs; the F test assumes that the two
    are independent, which runs of one seed are not.

    Returns:
      None for fewer than three pairs, and where one of the two does not vary or follows from the other.
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


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval (1927) of a proportion, from at least one independent trial.

    Unlike mean plus or minus two standard errors it is never empty, and stays within 0 and 1.
    """
    z = float(stats.norm.ppf(0.975))
    proportion = successes / trials
    centre = (proportion + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = math.sqrt(proportion * (1 - proportion) / trials + (z / (2 * trials)) ** 2)
    margin = z * spread / (1 + z * z / trials)
    return max(0.0, centre - margin), min(1.0, centre + margin)
