"""What is said and drawn of a fitted law: the numbers are those of the fit, and nothing is claimed beyond."""

import json

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection

from moe_jax.analysis.scaling_fit import LARGEST, fit_law
from moe_jax.analysis.scaling_laws import LAWS, cutoff_parameters
from moe_jax.analysis.scaling_plots import plot_fit
from moe_jax.analysis.scaling_report import (
    coefficient_table,
    effective_table,
    fit_record,
    format_fit,
    shared_errors,
    write_fit,
)
from moe_jax.cli import main
from tests.analysis.scaling_data import CLARK_TABLE, OUR_RESULTS, S_BASE, TRUTHS, losses


@pytest.fixture(scope="module")
def routed():
    """A fit with its table."""
    table = losses("routed", *TRUTHS["routed"], noise=0.01)
    return fit_law(table, "routed", bootstrap=40), table


def any_fit(law, noise=0.01):
    truth, sizes = TRUTHS[law]
    table = losses(law, truth, sizes, noise)
    return fit_law(table, law, bootstrap=40), table


def test_coefficients_stand_beside_the_published_ones(routed):
    table = coefficient_table(routed[0])
    assert table["value"].to_dict() == routed[0].coefficients
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    assert table["S-BASE"].to_dict() == S_BASE
    assert list(table.columns) == ["value", "low", "high", "S-BASE", "RL-R", "HASH"]


def test_effective_parameters_are_of_each_sparse_size_once(routed):
    fit, table = routed
    effective = effective_table(fit, table)
    assert len(effective) == 7 * 9
    assert (effective["effective"] > effective["N"]).all()
    assert ((effective["low"] < effective["effective"]) & (effective["effective"] < effective["high"])).all()
    np.testing.assert_array_equal(effective["extrapolated"], effective["effective"] > 1.3e9)


def test_errors_that_sizes_share_are_noticed_and_independent_ones_are_not(routed):
    fit, table = routed
    assert min(shared_errors(fit, table).values()) > 0.01
    assert "err together" not in format_fit(fit, table)
    seeds = table.assign(seed=np.arange(len(table)) % 3)
    shifted = seeds.assign(loss=seeds["loss"] * (1 + 0.02 * (seeds["seed"] - 1)))
    off = fit_law(shifted, "routed", bootstrap=40)
    assert shared_errors(off, shifted)["seed"] < 1e-6
    assert "runs of one seed err together (F test, p = " in format_fit(off, shifted)


def test_the_text_says_law_paper_error_and_cutoff(routed):
    fit, table = routed
    text = format_fit(fit, table)
    assert "log10 L = a log10 N + b log10 Ehat" in text
    assert "arXiv:2202.01169" in text
    assert f"70 runs, rmse {fit.rmse:.4f} in log10 L" in text
    for name, value in fit.coefficients.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert line.split()[1] == f"{value:.4g}"
        assert line.split()[-3:] == [
            f"{LAWS['routed'].published[router][name]:g}" for router in ("S-BASE", "RL-R", "HASH")
        ]
    assert "experts stop helping at N = " in text
    assert "* beyond the largest N of the table" in text
    assert "do not bound the interval" not in text


def test_an_interval_without_an_end_is_said_to_have_none():
    """Losses that never saturate leave E_max open."""
    table = losses("bilinear", TRUTHS["bilinear"][0], TRUTHS["routed"][1], noise=0.005)
    fit = fit_law(table, "routed", bootstrap=40)
    assert coefficient_table(fit).loc["E_max", "high"] > LARGEST / 2
    assert "E_max: the data do not bound the interval" in format_fit(fit, table)


def test_a_law_without_sizes_says_nothing_of_effective_parameters():
    for law in ("experts", "power", "dense"):
        fit, table = any_fit(law)
        assert "effective" not in format_fit(fit, table)
        assert "effective_parameters" not in fit_record(fit, table)


def test_what_is_infinite_is_null_in_json():
    truth = TRUTHS["bilinear"][0] | {"c": 0.0}
    table = losses("bilinear", truth, TRUTHS["bilinear"][1], noise=0.01)
    fit = fit_law(table, "bilinear", bootstrap=40)
    assert fit.quantity(cutoff_parameters).high == np.inf
    record = json.loads(json.dumps(fit_record(fit, table), allow_nan=False))
    assert record["cutoff_parameters"]["high"] is None
    assert "infinity" in format_fit(fit, table)


@pytest.mark.parametrize("law", LAWS)
def test_dots_are_the_losses_lines_the_law_and_the_right_panel_what_is_left(law):
    fit, table = any_fit(law)
    figure = plot_fit(fit, table)
    left, right = figure.axes
    dots = np.concatenate([line.get_ydata() for line in left.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(sorted(dots), sorted(table["loss"]))
    residuals = np.concatenate([line.get_ydata() for line in right.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(sorted(residuals), sorted(fit.residuals))
    lines = [line for line in left.lines if len(line.get_xdata()) == 60]
    bands = [band for band in left.collections if isinstance(band, FillBetweenPolyCollection)]
    others = table.drop(columns=["loss", next(name for name in "EGN" if name in fit.law.columns)])
    assert len(lines) == (len(others.drop_duplicates()) if others.shape[1] else 1) == len(bands) - 1
    assert "nats per token" in left.get_ylabel()
    assert left.get_xlabel() == right.get_xlabel() != ""
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["runs", "law", "95% interval of the law"]
    assert len(labels) == 3 + sum(others[name].nunique() for name in others)


def test_a_curve_is_the_law_at_the_sizes_of_its_dots(routed):
    fit, table = routed
    lines = plot_fit(fit, table).axes[0].lines
    curves = [line for line in lines if len(line.get_xdata()) == 60]
    for curve, size in zip(curves, sorted(table["N"].unique()), strict=True):
        expected = 10 ** fit.law.log_loss(fit.coefficients, {"N": np.full(60, size), "E": curve.get_xdata()})
        np.testing.assert_allclose(curve.get_ydata(), expected)


def test_a_band_is_the_interval_of_its_curve(routed):
    fit, table = routed
    band = plot_fit(fit, table).axes[0].collections[0]
    loss = fit.loss({"N": np.full(60, 15e6), "E": np.geomspace(1, 512, 60)})
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(loss.high.max())
    assert corners[:, 1].min() == pytest.approx(loss.low.min())


def test_files_are_written_whole(routed, tmp_path):
    fit, table = routed
    paths = write_fit(fit, table, tmp_path / "new/folder")
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == ["routed.json", "routed.png"]
    record = json.loads(paths[0].read_text())
    assert record["coefficients"]["a"]["value"] == fit.coefficients["a"]
    assert record["published"]["S-BASE"] == S_BASE
    assert len(record["effective_parameters"]) == 63
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_and_writes(tmp_path, capsys):
    assert main(["fit-law", str(CLARK_TABLE), "--bootstrap", "40", "--output", str(tmp_path / "law")]) == 0
    output = capsys.readouterr().out
    assert "--law auto chose routed" in output
    assert "-0.08378" in output
    assert "runs of one N err together" in output
    assert sorted(path.name for path in (tmp_path / "law").iterdir()) == ["routed.json", "routed.png"]


def test_the_command_takes_our_results(capsys):
    assert main(["fit-law", str(OUR_RESULTS), "--bootstrap", "40"]) == 0
    assert "--law auto chose experts" in capsys.readouterr().out
    assert main(["fit-law", str(OUR_RESULTS), "--bootstrap", "40", "--law", "experts"]) == 0
    assert "auto" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.csv"], "TABLE is 'absent.csv'"),
        ([str(CLARK_TABLE), "--law", "routd"], "law is 'routd'; accepted: bilinear"),
        ([str(CLARK_TABLE), "--law", "dense"], "D is not a column of TABLE"),
        ([str(CLARK_TABLE), "--bootstrap", "1"], "bootstrap is 1; accepted"),
        ([str(CLARK_TABLE), "--output", str(CLARK_TABLE)], "a file; accepted: a folder"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, says):
    assert main(["fit-law", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert says in output.err
