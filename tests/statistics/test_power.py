"""Power of the paired t test: against printed tables of sample sizes, and drawn samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_jax.statistics.power import detectable_effect, pooled_spread, power, seeds_needed


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_are_those_of_printed_tables(effect, seeds):
    """Cohen's small, medium and large effects in pairs, power 0.8 at 5%, as R's power.t.test and G*Power give them."""
    assert seeds_needed(effect) == seeds_needed(-effect) == seeds


@pytest.mark.parametrize(("effect", "seeds"), [(2.0, 3), (1.4, 6), (0.0, 4)])
def test_it_is_the_share_of_drawn_samples_in_which_the_effect_is_found(effect, seeds):
    draws = np.random.default_rng(seeds).normal(effect, 1.0, (40_000, seeds))
    found = stats.ttest_1samp(draws, 0.0, axis=1)
    share = np.mean((found.pvalue < 0.05) & (found.statistic > 0))
    assert power(effect, seeds) == pytest.approx(share, abs=4 * np.sqrt(0.25 / len(draws)))


@given(seeds=st.integers(2, 40), wanted=st.floats(0.5, 0.95), level=st.floats(0.01, 0.1))
def test_a_detectable_effect_needs_these_seeds(seeds, wanted, level):
    effect = detectable_effect(seeds, wanted, level)
    assert power(effect, seeds, level) == pytest.approx(wanted, abs=1e-6)
    assert seeds_needed(effect * 1.0001, wanted, level) == seeds


def test_an_effect_too_small_to_find_needs_no_number_of_seeds():
    assert seeds_needed(0.0) is None
    assert seeds_needed(0.01) is None


def test_the_pooled_spread_is_the_residual_of_a_model_with_a_mean_for_each_sample():
    rng = np.random.default_rng(0)
    samples = [rng.normal(mean, 0.5, size).tolist() for mean, size in ((0, 3), (5, 2), (-1, 6), (2, 1))]
    one_mean_each = np.repeat(np.eye(4), [len(sample) for sample in samples], axis=0)
    values = np.concatenate(samples)
    residual = np.linalg.lstsq(one_mean_each, values)[1][0]
    assert pooled_spread(samples) == pytest.approx(np.sqrt(residual / (len(values) - 4)))
    assert pooled_spread([[1.0], [2.0]]) is None
