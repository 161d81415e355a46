"""The figure of a scaling law: losses with the fitted curves, and residuals."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from moe_jax.analysis.scaling_fit import Fit
from moe_jax.analysis.scaling_tables import law_columns

LABELS = {
    "N": "parameters N (without embeddings)",
    "E": "experts E per sparse layer (1: dense)",
    "G": "granularity G",
    "D": "tokens D of training",
}
STYLES = ("-", "--", "-.", ":")

_rounded = EngFormatter(places=1)
_exact = EngFormatter()


def plot_fit(fit: Fit, table: pd.DataFrame) -> Figure:
    """Plots losses over E, G or N with the law's curves and their 95% intervals; on the right the residuals.

    There is one curve for each value of the law's other variables. Colours stand for the first of these, line styles
    for the second.

    Args:
      fit: fit of a law to `table`.
      table: table that was given to `fit_law`.

    Raises:
      ConfigError: see `law_columns`.
    """
    columns = pd.DataFrame(dict(law_columns(table, fit.name))).assign(residual=fit.residuals)
    x = next(name for name in ("E", "G", "N") if name in fit.law.columns)
    others = [name for name in fit.law.columns if name != x]
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    colours = _colours(columns[others[0]].unique() if others else np.zeros(1))
    styles = _styles(columns[others[1]].unique() if len(others) > 1 else np.zeros(1))
    for sizes, group in columns.groupby(others) if others else [((), columns)]:
        colour = colours[sizes[0] if others else 0.0]
        style = styles[sizes[1] if len(others) > 1 else 0.0]
        _plot_curve(left, fit, group, x, dict(zip(others, sizes, strict=True)), colour, style)
        right.plot(group[x], group["residual"], "o", color=colour, markersize=5, alpha=0.8)
    right.axhline(0.0, color="black", linestyle=":", linewidth=1.2)
    left.set_yscale("log")
    # Losses span less than a decade, where a logarithmic axis has hardly any ticks.
    left.yaxis.set_major_locator(MaxNLocator(8))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.yaxis.set_minor_locator(NullLocator())
    left.set_ylabel("loss L (nats per token)")
    right.set_ylabel("residual (log10 L, measured - law)")
    right.set_title(f"rmse {fit.rmse:.4f} in log10 L, {len(columns)} runs")
    left.set_title(fit.law.formula, fontsize=9)
    for axes in (left, right):
        _log_axis(axes, x, columns[x].unique())
    _legend(figure, others, colours, styles)
    return figure


def _plot_curve(
    axes: Axes, fit: Fit, group: pd.DataFrame, x: str, sizes: Mapping[str, float], colour: str, style: str
) -> None:
    """Plots one curve with its interval over the range of its runs, and the runs as dots."""
    line = np.geomspace(group[x].min(), group[x].max(), 60)
    loss = fit.loss({x: line} | {name: np.full(60, value) for name, value in sizes.items()})
    axes.fill_between(line, loss.low, loss.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(line, loss.value, style, color=colour, linewidth=1.6)
    axes.plot(group[x], group["loss"], "o", color=colour, markersize=5)


def _log_axis(axes: Axes, name: str, values: Float[np.ndarray, " sizes"]) -> None:
    """Makes an axis logarithmic, with a tick at each value if there are few."""
    axes.set_xscale("log")
    axes.set_xlabel(LABELS[name])
    axes.grid(alpha=0.25)
    if len(values) <= 12:
        axes.xaxis.set_major_locator(FixedLocator(sorted(values)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_rounded if name == "N" else _exact)


def _colours(values: Float[np.ndarray, " sizes"]) -> dict[float, str]:
    """Chooses colours of viridis, which is safe for the colour-blind; darker for larger values."""
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(values))[::-1])
    return {value: to_hex(shade) for value, shade in zip(sorted(values), shades, strict=True)}


def _styles(values: Float[np.ndarray, " sizes"]) -> dict[float, str]:
    """Chooses line styles; values share them if there are more values than styles."""
    return {value: STYLES[i % len(STYLES)] for i, value in enumerate(sorted(values))}


def _legend(figure: Figure, others: Sequence[str], colours: Mapping[float, str], styles: Mapping[float, str]) -> None:
    """Draws the legend: dots, lines and shades, and each colour and line style."""
    axes = figure.axes[0]
    grey = {"color": "0.3"}
    handles = [
        *axes.plot([], [], "o", markersize=5, label="runs", **grey),
        *axes.plot([], [], label="law", **grey),
        axes.fill_between([], [], [], alpha=0.2, linewidth=0, label="95% interval of the law", **grey),
    ]
    if others:
        handles += [
            axes.plot([], [], color=colour, linewidth=3, label=f"{others[0]} = {_rounded(value)}")[0]
            for value, colour in colours.items()
        ]
    if len(others) > 1:
        handles += [
            axes.plot([], [], style, label=f"{others[1]} = {_rounded(value)}", **grey)[0]
            for value, style in styles.items()
        ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) < 10 else 7, frameon=False
    )
