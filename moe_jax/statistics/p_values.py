"""P values of means, and their adjustment for several tests."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_p_value(values: Sequence[float]) -> float:
    """Returns the two-sided p value of Student's t test that the mean of two or more values is 0."""
    if np.ptp(values) == 0:
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p values for several tests by Holm's procedure (1979); returns them in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
