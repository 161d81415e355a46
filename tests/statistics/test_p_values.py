import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_jax.statistics.p_values import holm, mean_p_value

numbers = st.floats(-10, 10).map(lambda value: round(value, 3))
samples = st.lists(numbers, min_size=3, max_size=8).filter(lambda values: np.std(values) > 0.01)


@given(samples)
def test_p_of_a_mean_is_scipys(values):
    assert mean_p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Holm's procedure rejects what every Bonferroni test of a set that contains it rejects."""
    indices = range(len(p_values))
    sets = [chosen for size in indices for chosen in itertools.combinations(indices, size + 1)]
    closed = [max(min(1, len(c) * min(p_values[j] for j in c)) for c in sets if i in c) for i in indices]
    assert holm(p_values) == pytest.approx(closed)


def test_values_that_do_not_vary_are_certain():
    assert mean_p_value([0.5, 0.5]) == 0
    assert mean_p_value([0.0, 0.0]) == 1
