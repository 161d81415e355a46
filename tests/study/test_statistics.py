import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_jax.study.statistics import estimate, paired_difference, reached_at, wilson_interval

curves = st.lists(st.floats(0.1, 10), min_size=2, max_size=20).map(np.array)


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


@given(trials=st.integers(1, 1000), share=st.floats(0, 1))
def test_wilsons_interval_is_scipys(trials, share):
    successes = round(share * trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_equal_differences_are_no_number_of_standard_errors():
    assert paired_difference([1.0, 2.0], [0.5, 1.5]).in_standard_errors is None


def test_pairs_must_match():
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("target", "expected"),
    [(5.0, 0.0), (4.0, 0.0), (3.0, 50.0), (2.0, 100.0), (1.5, 250.0), (1.0, 300.0), (0.5, None)],
)
def test_reached_at_interpolates_the_running_minimum(target, expected):
    # The loss rises from 2 to 2.5 at 200; the running minimum stays at 2 there.
    assert reached_at(np.array([0, 100, 200, 300]), np.array([4.0, 2.0, 2.5, 1.0]), target) == expected


def test_a_diverged_evaluation_reaches_nothing():
    curve = np.array([math.nan, 2.0, math.nan])
    assert reached_at(np.arange(3), curve, 2.5) == 1
    assert reached_at(np.arange(3), curve, 1.0) is None


@given(curves, st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_lower_loss_is_reached_no_earlier(curve, one, other):
    positions = [reached_at(np.arange(len(curve)), curve, target) for target in sorted((one, other))]
    if positions[0] is not None:
        assert positions[0] >= positions[1]


@given(curves, st.floats(0.1, 10), st.floats(1e-3, 1e12))
def test_the_unit_of_x_does_not_matter(curve, target, unit):
    x = np.arange(len(curve))
    plain, scaled = reached_at(x, curve, target), reached_at(x * unit, curve, target)
    assert (plain is None) == (scaled is None)
    assert plain is None or scaled == pytest.approx(plain * unit)


@given(curves, st.data())
def test_every_loss_of_a_curve_is_reached_by_its_step(curve, data):
    step = data.draw(st.integers(0, len(curve) - 1))
    assert reached_at(np.arange(len(curve)), curve, curve[step]) <= step
