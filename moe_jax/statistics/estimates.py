"""Means over seeds with their intervals, and differences paired by seed."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from moe_jax.statistics.intervals import Interval, mean_interval


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over independent runs, with its uncertainty.

    Attributes:
      mean: over the runs.
      n: number of runs.
      standard_error: of the mean; None for one run.
      interval: Student's t 95% confidence interval of the mean; None for one run.
    """

    mean: float
    n: int
    standard_error: float | None
    interval: Interval | None

    @property
    def in_standard_errors(self) -> float | None:
        """The mean over its standard error (Student's t), or None if that error is 0 or unknown."""
        return self.mean / self.standard_error if self.standard_error else None


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of at least one value, with its uncertainty if there are two or more."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, n, None, None)
    return Estimate(mean, n, float(stats.sem(values)), mean_interval(values))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Returns the mean of `values - baseline`, whose entries at one index come from one seed.

    Pairing removes the effect that a seed has on both models, so a small difference shows with few seeds.
    """
    return estimate([value - other for value, other in zip(values, baseline, strict=True)])
