"""P values of means, one at a time and adjusted for being several."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def p_of_mean(values: Sequence[float]) -> float:
    """Two-sided p value of Student's t test that the mean of two or more values is 0."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))


def adjusted_for_several(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted for being several (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
