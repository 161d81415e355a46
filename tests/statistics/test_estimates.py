import math

import pytest
from scipy import stats

from moe_jax.statistics.estimates import estimate, paired_difference


def test_paired_difference_is_scipys_paired_t_test():
    values, baseline = [1.21, 1.35, 1.18, 1.40], [1.30, 1.36, 1.31, 1.47]
    ours, theirs = paired_difference(values, baseline), stats.ttest_rel(values, baseline)
    assert ours.in_standard_errors == pytest.approx(theirs.statistic)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.n == 4


def test_student_1908_sleep_data():
    """Additional hours of sleep of 10 patients in Student's paper: mean 1.58, standard deviation 1.23, t = 4.06."""
    dextro = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    laevo = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    difference = paired_difference(laevo, dextro)
    assert difference.mean == pytest.approx(1.58)
    assert difference.standard_error * math.sqrt(10) == pytest.approx(1.23, abs=0.005)
    assert difference.in_standard_errors == pytest.approx(4.06, abs=0.005)
    assert difference.interval == pytest.approx((0.70, 2.46), abs=0.005)


def test_one_value_has_no_interval():
    value = estimate([1.5])
    assert (value.mean, value.n) == (1.5, 1)
    assert value.standard_error is value.interval is value.in_standard_errors is None


def test_equal_differences_are_no_number_of_standard_errors():
    assert paired_difference([1.0, 2.0], [0.5, 1.5]).in_standard_errors is None


def test_pairs_must_match():
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 2.0])
