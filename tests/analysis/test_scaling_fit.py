"""What a fit finds again of a law from losses with noise, and whether its intervals hold what they claim to."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe_jax.analysis.scaling_fit import HUBER, Quantity, fit_law
from moe_jax.analysis.scaling_laws import LAWS
from moe_jax.analysis.scaling_tables import read_losses
from moe_jax.configuration import ConfigError
from tests.analysis.scaling_data import CLARK_TABLE, S_BASE, TRUTHS, losses

REFIT = {"a": -0.0838, "b": -0.1234, "c": 0.0104, "d": 1.1216}
"""Least squares, by other code, on all S-BASE and dense runs with K = 1 and R = 0.5 that Clark et al. released."""


def interval(fit, name) -> Quantity:
    return fit.quantity(lambda coefficients: coefficients[name])


def held(fit, truth) -> list[bool]:
    """Whether each coefficient's interval holds the truth."""
    found = [(interval(fit, name), value) for name, value in truth.items()]
    return [bool(quantity.low <= value <= quantity.high) for quantity, value in found]


@pytest.mark.parametrize("law", LAWS)
def test_losses_without_noise_give_the_coefficients_back(law):
    truth, sizes = TRUTHS[law]
    fit = fit_law(losses(law, truth, sizes), law, bootstrap=40)
    assert fit.rmse < 1e-8
    assert fit.coefficients == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("law", ["routed", "fine_grained"])
def test_published_coefficients_are_found_within_their_intervals(law):
    """From losses with 1% of noise on grids like the papers', in less than a minute."""
    truth, sizes = TRUTHS[law]
    begin = time.monotonic()
    fit = fit_law(
        losses(law, truth, sizes, noise=0.01, seed=1), law, bootstrap={"routed": 200, "fine_grained": 60}[law]
    )
    assert time.monotonic() - begin < 60
    assert all(held(fit, truth))
    assert fit.rmse == pytest.approx(0.01 / np.log(10), rel=0.2)


@pytest.mark.parametrize(("law", "draws", "samples"), [("routed", 16, 80), ("bilinear", 40, 80)])
def test_intervals_hold_the_truth_as_often_as_they_claim(law, draws, samples):
    """95%; 0.88 allows for the few draws, whose coefficients hang together. Nine runs and four coefficients suffice.

    Nor are they wider than need be: as wide as Student's for the spread of the estimates over the draws.
    """
    truth, sizes = TRUTHS[law]
    fits = [fit_law(losses(law, truth, sizes, noise=0.01, seed=seed), law, bootstrap=samples) for seed in range(draws)]
    assert np.mean([held(fit, truth) for fit in fits]) >= 0.88
    if law == "bilinear":
        widths = [float(interval(fit, "b").high - interval(fit, "b").low) for fit in fits]
        spread = np.std([fit.coefficients["b"] for fit in fits], ddof=1)
        assert np.mean(widths) == pytest.approx(2 * stats.t.ppf(0.975, 5) * spread, rel=0.35)


def test_the_table_of_clark_et_al_gives_the_refit_of_their_runs():
    """To within a tenth of the intervals: our table may have fewer of the runs, and the loss is Huber's."""
    table = read_losses(CLARK_TABLE)
    fit = fit_law(table, "routed")
    tenth = {name: 0.1 * float(interval(fit, name).high - interval(fit, name).low) for name in REFIT}
    for name, value in REFIT.items():
        assert fit.coefficients[name] == pytest.approx(value, abs=tenth[name]), name
    assert fit.rmse == pytest.approx(0.003, abs=0.0005)
    assert all(held(fit, S_BASE))
    # Dense models alone: the paper's exponent is 0.078.
    dense = fit_law(table[table["E"] == 1], "power", bootstrap=40)
    assert -dense.coefficients["a"] == pytest.approx(0.078, abs=0.0015)


def test_a_line_is_that_of_linear_regression():
    """Where no residual is beyond Huber's turn; its interval is Student's."""
    table = losses("power", {"a": -0.08, "d": 1.1}, {"N": list(np.geomspace(1e6, 1e9, 30))}, noise=0.005)
    theirs = stats.linregress(np.log10(table["N"]), np.log10(table["loss"]))
    fit = fit_law(table, "power", bootstrap=1000)
    assert np.abs(fit.residuals).max() < HUBER
    assert fit.coefficients == pytest.approx({"a": theirs.slope, "d": theirs.intercept}, rel=1e-6)
    ours = interval(fit, "a")
    width = 2 * stats.t.ppf(0.975, 28) * theirs.stderr
    assert float(ours.high - ours.low) == pytest.approx(width, rel=0.1)


def test_one_run_that_went_wrong_moves_the_law_far_less_than_least_squares():
    truth, sizes = TRUTHS["bilinear"]
    table = losses("bilinear", truth, sizes | {"N": list(np.geomspace(1e6, 1e9, 10))}, noise=0.01)
    clean = fit_law(table, "bilinear", bootstrap=40).coefficients["b"]
    table.loc[2, "loss"] *= 2
    n, e = np.log10(table["N"]), np.log10(table["E"])
    squares = np.linalg.lstsq(np.stack([n, e, n * e, np.ones(30)], axis=1), np.log10(table["loss"]))[0]
    ours = fit_law(table, "bilinear", bootstrap=40).coefficients["b"]
    assert abs(ours - clean) < 0.1 * abs(squares[1] - clean)


def test_a_seed_fixes_the_intervals():
    table = losses("power", *TRUTHS["power"], noise=0.01)
    first, same, other = (fit_law(table, "power", bootstrap=40, seed=seed) for seed in (0, 0, 1))
    assert first.resampled == same.resampled
    assert first.resampled != other.resampled
    assert first.coefficients == other.coefficients


def test_replicates_narrow_the_intervals():
    """Four seeds of each size halve them; more than by half since fewer runs ask for wider percentiles."""
    truth, sizes = TRUTHS["bilinear"]
    few = [fit_law(losses("bilinear", truth, sizes, 0.01, seed), "bilinear", 80) for seed in range(8)]
    many = [
        fit_law(pd.concat(losses("bilinear", truth, sizes, 0.01, 4 * seed + i) for i in range(4)), "bilinear", 80)
        for seed in range(8)
    ]
    wide, narrow = (np.mean([interval(fit, "b").high - interval(fit, "b").low for fit in fits]) for fits in (few, many))
    assert 0.3 < narrow / wide < 0.55


def test_losses_of_a_curve_have_an_interval_that_holds_the_truth():
    truth, sizes = TRUTHS["bilinear"]
    fit = fit_law(losses("bilinear", truth, sizes, noise=0.005, seed=2), "bilinear")
    columns = {"N": np.geomspace(1e6, 16e6, 7), "E": np.full(7, 4.0)}
    loss = fit.loss(columns)
    exact = 10 ** LAWS["bilinear"].log_loss(truth, columns)
    assert (loss.low < loss.value).all()
    assert (loss.value < loss.high).all()
    assert ((loss.low < exact) & (exact < loss.high)).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bootstrap": 39}, "bootstrap is 39; accepted: an integer of at least 40"),
        ({"seed": -1}, "seed is -1"),
        ({"law": "routd"}, "law is 'routd'.*did you mean 'routed'"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        fit_law(losses("power", *TRUTHS["power"]), **({"law": "power"} | options))
