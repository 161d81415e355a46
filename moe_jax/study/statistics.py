"""Means with intervals over seeds, paired differences, shares with intervals, and when a curve reaches a loss."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Real
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


def reached_at(x: Real[np.ndarray, " points"], losses: Float[np.ndarray, " points"], target: float) -> float | None:
    """Where a loss curve first reaches `target`, or None if it never does.

    Args:
      x: increasing positions of the evaluations, in any unit: steps, FLOPs, seconds.
      losses: at these positions; NaN (a diverged evaluation) reaches nothing.
      target: the loss to reach.

    Returns:
      The position in the unit of `x`, by linear interpolation of the running minimum.
    """
    best = np.fmin.accumulate(losses)
    reached = np.flatnonzero(best <= target)
    if not reached.size:
        return None
    after = int(reached[0])
    if after == 0 or math.isnan(best[after - 1]):
        return float(x[after])
    share = (best[after - 1] - target) / (best[after - 1] - best[after])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))
