import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_jax.statistics.intervals import fieller_interval, mean_interval, pitman_morgan, proportion_interval

numbers = st.floats(-10, 10).map(lambda value: round(value, 3))
samples = st.lists(numbers, min_size=3, max_size=8).filter(lambda values: np.std(values) > 0.01)


@given(samples, st.sampled_from([0.9, 0.95]))
def test_interval_of_a_mean_is_scipys(values, level):
    low, high = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert mean_interval(values, level) == pytest.approx((low, high))


def test_values_that_do_not_vary_are_certain():
    assert mean_interval([0.5, 0.5], 0.95) == (0.5, 0.5)


@given(samples, st.lists(st.floats(2, 5), min_size=8, max_size=8))
def test_the_ends_of_a_share_are_where_the_t_test_turns(parts, wholes):
    """Fieller 1954: the interval is every share that a t test of parts - share * wholes does not reject."""
    wholes = wholes[: len(parts)]
    interval = fieller_interval(parts, wholes)
    if interval is None:
        assert stats.ttest_1samp(wholes, 0).pvalue > 0.0499
        return
    low, high = interval
    for end in interval:
        residue = np.array(parts) - end * np.array(wholes)
        assert stats.ttest_1samp(residue, 0).pvalue == pytest.approx(0.05, abs=1e-4)
    middle = np.array(parts) - (low + high) / 2 * np.array(wholes)
    assert stats.ttest_1samp(middle, 0).pvalue > 0.05


def test_a_share_of_what_may_be_nothing_has_no_interval():
    assert fieller_interval([0.1, 0.2, 0.1], [0.5, -0.4, 0.1]) is None


def test_the_interval_of_a_share_holds_it_in_95_of_100_studies_of_three_seeds():
    random = np.random.default_rng(0)
    hits = trials = 0
    for _ in range(2000):
        wholes = random.normal(0.3, 0.02, 3)
        parts = 0.2 * wholes + random.normal(0, 0.02, 3)
        interval = fieller_interval(parts.tolist(), wholes.tolist())
        if interval is not None:
            trials += 1
            hits += interval[0] <= 0.2 <= interval[1]
    assert trials > 1900
    assert hits / trials == pytest.approx(0.95, abs=0.015)


@given(samples, st.lists(numbers, min_size=8, max_size=8))
def test_spreads_are_told_apart_where_pitman_and_morgan_do(values, baseline):
    """Pitman 1939, Morgan 1939: variances of pairs are equal where sums and differences do not correlate."""
    ratio = pitman_morgan(values, baseline[: len(values)])
    values, baseline = np.array(values), np.array(baseline[: len(values)])
    if ratio is None:
        assert np.std(baseline) < 1e-6 or abs(np.corrcoef(values, baseline)[0, 1]) > 1 - 1e-9
        return
    estimate, (low, high) = ratio
    assert estimate == pytest.approx(np.std(values) / np.std(baseline))
    p = stats.pearsonr(values + baseline, values - baseline).pvalue
    if abs(p - 0.05) > 1e-6:
        assert (low <= 1 <= high) == (p > 0.05)
    for end in (low, high):
        scaled = baseline * end
        assert stats.pearsonr(values + scaled, values - scaled).pvalue == pytest.approx(0.05, abs=1e-4)


def test_two_pairs_say_nothing_of_spreads():
    assert pitman_morgan([1.0, 2.0], [1.0, 5.0]) is None


@given(trials=st.integers(1, 1000), share=st.floats(0, 1))
def test_wilsons_interval_is_scipys(trials, share):
    successes = round(share * trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert proportion_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
