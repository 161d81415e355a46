"""Power of the paired t test: the effect that some seeds can show, and the seeds that an effect needs.

An effect is a mean difference over the standard deviation, over seeds, of the difference paired by seed.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

POWER, LEVEL, MOST_SEEDS = 0.8, 0.05, 1000


def power(effect: float, seeds: int, level: float = LEVEL) -> float:
    """Returns the probability that the two-sided test at `level` finds an effect, on its side, with two seeds or more.

    The statistic then has the noncentral t distribution.
    """
    critical = stats.t.isf(level / 2, seeds - 1)
    return float(stats.nct.sf(critical, seeds - 1, abs(effect) * np.sqrt(seeds)))


def detectable_effect(seeds: int, wanted: float = POWER, level: float = LEVEL) -> float:
    """Returns the smallest effect that the test finds with the probability `wanted`."""
    largest = 1.0
    while power(largest, seeds, level) < wanted:
        largest *= 2
    return float(optimize.brentq(lambda effect: power(effect, seeds, level) - wanted, 0.0, largest))


def seeds_needed(effect: float, wanted: float = POWER, level: float = LEVEL) -> int | None:
    """Returns the fewest seeds with which the test finds an effect with the probability `wanted`; None above 1,000."""
    enough = (seeds for seeds in range(2, MOST_SEEDS + 1) if power(effect, seeds, level) >= wanted)
    return next(enough, None)


def pooled_spread(samples: Sequence[Sequence[float]]) -> float | None:
    """Returns the standard deviation within samples, all of one variance; None where no sample has two values."""
    squares = [np.sum(np.square(np.subtract(sample, np.mean(sample)))) for sample in samples]
    freedom = sum(len(sample) - 1 for sample in samples)
    return float(np.sqrt(sum(squares) / freedom)) if freedom else None
