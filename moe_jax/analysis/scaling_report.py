"""The report of a fitted scaling law, for terminals and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter
from scipy import stats

from moe_jax.analysis.scaling_fit import LARGEST, Fit, Quantity
from moe_jax.analysis.scaling_laws import cutoff_parameters, effective_parameters
from moe_jax.analysis.scaling_plots import plot_fit
from moe_jax.analysis.scaling_tables import law_columns
from moe_jax.runtime.files import write_beside, write_whole

SUSPICIOUS = 0.01
"""The p-value below which `format_fit` warns of shared errors."""

_count = EngFormatter(places=2)


def coefficient_table(fit: Fit) -> pd.DataFrame:
    """Tabulates each coefficient with the ends of its 95% interval and the published values."""
    found = {name: fit.quantity(lambda coefficients, name=name: coefficients[name]) for name in fit.coefficients}
    table = pd.DataFrame({name: _record(quantity) for name, quantity in found.items()}).T
    return table.join(pd.DataFrame(dict(fit.law.published), index=list(fit.coefficients)))


def effective_table(fit: Fit, table: pd.DataFrame) -> pd.DataFrame:
    """Tabulates the effective parameter count of each sparse size of a table; see `effective_parameters`.

    Columns: N, E, effective, low, high, and `extrapolated`, true if the count is above the largest N of the table.

    Args:
      fit: fit of the law `routed` or `bilinear`.
      table: table that was given to `fit_law`.
    """
    columns = law_columns(table, fit.name)
    sizes = np.unique(np.stack([columns["N"], columns["E"]], axis=1), axis=0)
    sizes = sizes[sizes[:, 1] > 1]
    effective = fit.quantity(lambda coefficients: effective_parameters(coefficients, sizes[:, 0], sizes[:, 1]))
    return pd.DataFrame(
        {
            "N": sizes[:, 0],
            "E": sizes[:, 1],
            "effective": effective.value,
            "low": effective.low,
            "high": effective.high,
            "extrapolated": effective.value > columns["N"].max(),
        }
    )


def shared_errors(fit: Fit, table: pd.DataFrame) -> dict[str, float]:
    """Tests whether runs with the same value of a variable err together, for each variable of the law and `seed`.

    Returns p-values of the F test that the mean residual is the same for each value. A small p-value means that the
    law is only an approximation, or that a seed shifts all models alike. The intervals, which assume independent runs,
    are then too narrow.

    Args:
      fit: fit of a law to `table`.
      table: table that was given to `fit_law`.
    """
    names = [name for name in (*fit.law.columns, "seed") if name in table and 1 < table[name].nunique() < len(table)]
    groups = {name: pd.Series(fit.residuals).groupby(table[name].to_numpy()) for name in names}
    return {name: float(stats.f_oneway(*(group for _, group in groups[name])).pvalue) for name in names}


def format_fit(fit: Fit, table: pd.DataFrame) -> str:
    """Formats the law, its coefficients beside the published ones, its error, and effective parameter counts."""
    relative = 100 * (10**fit.rmse - 1)
    lines = [
        f"{fit.name}: {fit.law.formula}",
        f"({fit.law.paper})",
        f"{len(fit.residuals)} runs, rmse {fit.rmse:.4f} in log10 L, {relative:.2f}% of the loss; 95% intervals from "
        f"{len(fit.resampled)} bootstrap samples",
        "",
        *_coefficient_lines(fit),
        *(
            f"runs of one {name} err together (F test, p = {p:.0e}), but the intervals assume independent runs"
            for name, p in shared_errors(fit, table).items()
            if p < SUSPICIOUS
        ),
    ]
    if has_effective_parameters(fit):
        lines += ["", _cutoff_line(fit, table), "", *_effective_lines(effective_table(fit, table))]
    return "\n".join(lines)


def has_effective_parameters(fit: Fit) -> bool:
    """Returns true if the law has both variables N and E."""
    return {"N", "E"} <= fit.law.columns.keys()


def fit_record(fit: Fit, table: pd.DataFrame) -> dict[str, Any]:
    """Returns the contents of the report in JSON's types; infinite numbers are None."""
    record: dict[str, Any] = {
        "law": fit.name,
        "formula": fit.law.formula,
        "paper": fit.law.paper,
        "runs": len(fit.residuals),
        "rmse_log10": fit.rmse,
        "bootstrap": len(fit.resampled),
        "shared_errors": shared_errors(fit, table),
        "coefficients": coefficient_table(fit)[["value", "low", "high"]].to_dict("index"),
        "published": {whose: dict(values) for whose, values in fit.law.published.items()},
    }
    if has_effective_parameters(fit):
        record["cutoff_parameters"] = _record(fit.quantity(cutoff_parameters))
        record["effective_parameters"] = effective_table(fit, table).to_dict("records")
    return _finite(record)


def write_fit(fit: Fit, table: pd.DataFrame, output: Path) -> list[Path]:
    """Writes `LAW.json` and `LAW.png` into the folder `output` and returns their paths."""
    paths = [output / f"{fit.name}.json", output / f"{fit.name}.png"]
    write_whole(paths[0], json.dumps(fit_record(fit, table), indent=1, allow_nan=False) + "\n")
    with write_beside(paths[1]) as beside:
        plot_fit(fit, table).savefig(beside, dpi=150)
    return paths


def _coefficient_lines(fit: Fit) -> list[str]:
    table = coefficient_table(fit)
    header = ["", "fitted", "95% interval", *fit.law.published]
    cells = [
        [name, f"{row['value']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}"]
        + [f"{row[whose]:g}" for whose in fit.law.published]
        for name, row in table.iterrows()
    ]
    open_ended = (table["low"] < 2 / LARGEST) & (table["low"] > 0) | (table["high"] > LARGEST / 2)
    note = [f"{', '.join(table.index[open_ended])}: the data do not bound the interval"] if open_ended.any() else []
    return [*_align([header, *cells]), *note]


def _cutoff_line(fit: Fit, table: pd.DataFrame) -> str:
    cutoff = fit.quantity(cutoff_parameters)
    beyond = float(cutoff.value) / law_columns(table, fit.name)["N"].max()
    how = f", {beyond:.3g} times the largest N of the table" if math.isfinite(beyond) else ""
    return f"experts stop helping at N = {_number(cutoff.value)} ({_number(cutoff.low)} to {_number(cutoff.high)}){how}"


def _effective_lines(table: pd.DataFrame) -> list[str]:
    header = ["N", "E", "effective N", "95% interval", "effective N / N"]
    cells = [
        [
            _number(row.N),
            f"{row.E:g}",
            _number(row.effective) + ("*" if row.extrapolated else " "),
            f"{_number(row.low)} to {_number(row.high)}",
            f"{row.effective / row.N:.2f}",
        ]
        for row in table.itertuples()
    ]
    note = ["* beyond the largest N of the table"] if table["extrapolated"].any() else []
    return [*_align([header, *cells]), *note]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _number(value: SupportsFloat) -> str:
    """Formats a count with its unit prefix; from 1e18 on as a power of ten."""
    value = float(value)
    if math.isinf(value):
        return "infinity"
    return _count(value) if 1 <= value < 1e18 else f"{value:.0e}"


def _record(quantity: Quantity) -> dict[str, float]:
    return {"value": float(quantity.value), "low": float(quantity.low), "high": float(quantity.high)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
