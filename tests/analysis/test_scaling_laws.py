"""The formulas, against the papers' own figures and a transcription of theirs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.analysis.scaling_laws import LAWS, cutoff_parameters, effective_experts, effective_parameters
from tests.analysis.scaling_data import FINE_GRAINED, S_BASE, TRUTHS

N_CUTOFF = {"S-BASE": 937e9, "RL-R": 85e9, "HASH": 83e9}
"""Clark et al. 2022, beside the coefficients."""

COMPUTE_OPTIMAL = [
    (100e6, 4.37e9, 8, 3.133),
    (1e9, 28.94e9, 16, 2.491),
    (3e9, 72.90e9, 16, 2.245),
    (7e9, 137.6e9, 32, 2.076),
    (70e9, 941e9, 32, 1.694),
    (300e9, 2.96e12, 64, 1.503),
    (1e12, 7.94e12, 64, 1.367),
]
"""Krajewski et al. 2024: active parameters, tokens, granularity and the loss that the law gives, with 64 experts."""

FROM_ACTIVE = (8 * 64 + 4) / 12
"""All parameters over the active ones: d**2 * (8 E + 4) over d**2 * 12 in each block."""


def test_the_fine_grained_law_gives_the_losses_of_its_papers_table():
    """Within 1.5%: exponents that are printed with three decimals leave N ** -alpha uncertain by as much."""
    active, tokens, granularity, loss = np.array(COMPUTE_OPTIMAL).T
    columns = {"N": FROM_ACTIVE * active, "D": tokens, "G": granularity}
    ours = 10 ** LAWS["fine_grained"].log_loss(FINE_GRAINED, columns)
    np.testing.assert_allclose(ours, loss, rtol=0.015)


@pytest.mark.parametrize("router", N_CUTOFF)
def test_the_cutoff_is_the_papers_but_for_rounding(router):
    """b and c are printed with three decimals: the paper's own cutoff lies where these leave it."""
    b, c = (LAWS["routed"].published[router][name] for name in "bc")
    nearest = cutoff_parameters({"b": b + 0.0005, "c": c + 0.0005})
    farthest = cutoff_parameters({"b": b - 0.0005, "c": c - 0.0005})
    assert nearest < N_CUTOFF[router] < farthest
    assert cutoff_parameters({"b": b, "c": c}) == pytest.approx(10 ** (-b / c))


def test_at_the_cutoff_experts_change_nothing():
    cutoff = np.full(3, cutoff_parameters(S_BASE))
    loss = LAWS["routed"].log_loss(S_BASE, {"N": cutoff, "E": np.array([1.0, 8.0, 512.0])})
    np.testing.assert_allclose(loss, loss[0], rtol=1e-12)


@pytest.mark.parametrize("c", [0.0, -0.01, 1e-9])
def test_without_an_interaction_there_is_no_cutoff(c):
    assert cutoff_parameters({"b": -0.1, "c": c}) == np.inf


def test_the_papers_example_of_effective_parameters():
    """5M parameters and 128 experts are worth 55M; with the coefficients as printed, 5% less."""
    (effective,) = effective_parameters(S_BASE, np.array([5e6]), np.array([128.0]))
    assert effective == pytest.approx(55e6, rel=0.06)


@given(size=st.floats(6, 12), experts=st.floats(1, 4096), law=st.sampled_from(["routed", "bilinear"]))
def test_effective_parameters_of_a_dense_model_give_the_same_loss(size, experts, law):
    coefficients = TRUTHS[law][0]
    parameters = np.array([10**size])
    effective = effective_parameters(coefficients, parameters, np.array([experts]))
    sparse = LAWS[law].log_loss(coefficients, {"N": parameters, "E": np.array([experts])})
    dense = LAWS[law].log_loss(coefficients, {"N": effective, "E": np.ones(1)})
    np.testing.assert_allclose(dense, sparse, rtol=1e-9, atol=1e-12)


@given(start=st.floats(0.5, 8), ratio=st.floats(1.5, 1e4))
def test_experts_saturate_at_both_ends(start, ratio):
    experts = np.geomspace(1, 1e12, 100)
    effective = effective_experts(experts, start, start * ratio)
    np.testing.assert_allclose(effective[[0, -1]], [start, start * ratio], rtol=1e-6)
    assert (np.diff(effective) >= -1e-9 * effective[1:]).all()


def test_between_its_ends_saturation_is_the_papers_formula():
    """1 / Ehat = 1 / (E - 1 + (1 / E_start - 1 / E_max) ** -1) + 1 / E_max."""
    experts, start, end = np.array([1.0, 8.0, 512.0]), 2.0, 50.0
    inverse = 1 / (experts - 1 + (1 / start - 1 / end) ** -1) + 1 / end
    np.testing.assert_allclose(effective_experts(experts, start, end), 1 / inverse)


def test_each_law_is_its_formula():
    n, e, d, g = (np.array(values) for values in ([3e6, 2e9], [4.0, 64.0], [1e9, 7e10], [1.0, 8.0]))
    routed, dense = TRUTHS["routed"][0], TRUTHS["dense"][0]
    ehat = np.log10(effective_experts(e, routed["E_start"], routed["E_max"]))
    fine = FINE_GRAINED
    expected = {
        "routed": -0.082 * np.log10(n) - 0.108 * ehat + 0.009 * np.log10(n) * ehat + 1.104,
        "bilinear": -0.08 * np.log10(n) - 0.1 * np.log10(e) + 0.01 * np.log10(n) * np.log10(e) + 1.1,
        "experts": 0.6 - 0.03 * np.log10(e),
        "fine_grained": np.log10(
            fine["c"]
            + (fine["g"] / g ** fine["gamma"] + fine["a"]) / n ** fine["alpha"]
            + fine["b"] / d ** fine["beta"]
        ),
        "dense": np.log10(dense["c"] + dense["a"] / n ** dense["alpha"] + dense["b"] / d ** dense["beta"]),
        "power": 1.06 - 0.078 * np.log10(n),
    }
    assert expected.keys() == LAWS.keys()
    for law, losses in expected.items():
        ours = LAWS[law].log_loss(TRUTHS[law][0], {"N": n, "E": e, "D": d, "G": g})
        np.testing.assert_allclose(ours, losses, rtol=1e-12, err_msg=law)
