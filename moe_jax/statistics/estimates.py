"""Means over seeds with their intervals, and differences paired by seed."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over independent runs and how well it is known.

    Attributes:
      mean: over the runs.
      n: runs.
      standard_error: of the mean; None for one run.
      interval: Student's t 95 % confidence interval of the mean; None for one run.
    """

    mean: float
    n: int
    standard_error: float | None
    interval: tuple[float, float] | None

    @property
    def in_standard_errors(self) -> float | None:
        """The mean's distance from 0 (Student's t), or None where the standard error is 0 or unknown."""
        return self.mean / self.standard_error if self.standard_error else None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of at least one value, with its uncertainty where there are two or more."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, n, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    margin = float(stats.t.ppf(0.975, n - 1)) * error
    return Estimate(mean, n, error, (mean - margin, mean + margin))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The mean of `values - baseline`, where the entries at one index come from one seed.

    Pairing removes what a seed does to both models, so a small difference shows with few seeds.
    """
    return estimate([value - other for value, other in zip(values, baseline, strict=True)])
