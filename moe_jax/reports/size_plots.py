"""The figures of models of several sizes: loss against the cost of training, and final loss against a token's FLOPs."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from moe_jax.reports.plots import DOTTED, EARLY, loss_limits
from moe_jax.reports.tables import quantity
from moe_jax.results.curves import curve_frame
from moe_jax.results.rows import Row
from moe_jax.results.sizes import Meter, Size
from moe_jax.results.summary import experts_of, group_by_name
from moe_jax.statistics.estimates import Estimate

STYLES = ("-", "--", ":", "-.")
"""Lines of the sizes, from the largest."""


def plot_size_losses(sizes: Sequence[Size], meter: Meter) -> Figure:
    """Plots validation loss over training FLOPs, tokens, seconds and joules, on logarithmic scales.

    A line is the mean over seeds and its band their range; colours are numbers of experts, styles are sizes.

    Args:
      sizes: the models.
      meter: of the energy.
    """
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).flatten()
    colours = _colours(sizes)
    costs = {
        "flops": ("training FLOPs", EngFormatter(sep=" ")),
        "tokens": ("training tokens", EngFormatter(sep=" ")),
        "seconds": ("seconds of training", "{x:g}"),
        "joules": (f"energy of training ({meter.name})", EngFormatter("J")),
    }
    for axes, (cost, (label, formatter)) in zip(panels, costs.items(), strict=True):
        first = math.inf
        for size, style in zip(sizes, _styles(sizes), strict=True):
            for group in group_by_name(size.rows).values():
                left = _plot_curve(axes, group, cost, meter, colours[experts_of(group[0])], style)
                first = min(first, left)
        axes.set_xscale("log")
        axes.set_xlim(left=first)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(formatter)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    for axes in panels[::2]:
        axes.set_ylabel("validation loss (nats per token)")
    panels[0].set_ylim(*loss_limits([row for size in sizes for row in size.rows]))
    _add_legend(figure, sizes, colours)
    return figure


def plot_final_losses(sizes: Sequence[Size]) -> Figure:
    """Plots final loss over the FLOPs of a token, and the sparse models' minus the dense one's, with 95% intervals.

    A line for each number of experts. Models of one size have the same FLOPs and are drawn a little apart.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    losses, gains = figure.subplots(1, 2)
    colours = _colours(sizes)
    for place, (experts, colour) in enumerate(colours.items()):
        shift = 1.025 ** (place - (len(colours) - 1) / 2)
        found = [(s.flops_per_token * shift, s) for size in sizes for s in size.summaries if s.experts == experts]
        _plot_estimates(losses, [(x, s.loss) for x, s in found], colour, _name_of(experts))
        changes = [(x, s.difference) for x, s in found if s.difference is not None]
        _plot_estimates(gains, changes, colour, _name_of(experts))
    gains.axhline(0.0, **DOTTED)
    losses.set_ylabel("final validation loss (nats per token)")
    gains.set_ylabel("loss - dense model's of the size (nats per token)")
    flops = [size.dense.flops_per_token for size in sizes]
    for axes in (losses, gains):
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(flops), 1.25 * max(flops))
        axes.set_xticks(flops, [f"{size.label}\n{quantity(size.dense.flops_per_token)}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("active training FLOPs per token")
        axes.grid(alpha=0.25)
    handles, names = losses.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return figure


def _plot_curve(axes: Axes, rows: Sequence[Row], cost: str, meter: Meter, colour: str, style: str) -> float:
    """Draws one model, and says where its early part, which may leave the plot, ends."""
    frame = curve_frame(rows)
    frame["joules"] = frame["step"] * float(np.mean([meter.joules(row) for row in rows]))
    points = frame[frame["step"] > 0].groupby("step")
    x, losses = points[cost].mean(), points["validation_loss"]
    axes.fill_between(x, losses.min(), losses.max(), color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, losses.mean(), color=colour, linestyle=style, linewidth=1.6)
    return float(x[x.index >= 0.5 * EARLY * x.index.max()].iloc[0])


def _plot_estimates(axes: Axes, points: Sequence[tuple[float, Estimate]], colour: str, name: str) -> None:
    """Draws a line through means, with their intervals if there are any."""
    if not points:
        return
    x, means = [x for x, _ in points], [found.mean for _, found in points]
    ends = np.array([found.interval or (found.mean, found.mean) for _, found in points]).T
    errors = np.abs(ends - np.array(means))
    axes.errorbar(x, means, errors, color=colour, marker="o", markersize=4, linewidth=1.6, capsize=3, label=name)


def _add_legend(figure: Figure, sizes: Sequence[Size], colours: dict[int, str]) -> None:
    """Adds legends above the panels: colours on the left, styles on the right."""
    experts = [Line2D([], [], color=colour, linewidth=2.4, label=_name_of(e)) for e, colour in colours.items()]
    figure.legend(handles=experts, loc="outside upper left", ncols=len(experts), frameon=False)
    styles = [
        Line2D([], [], color="black", linestyle=style, linewidth=1.6, label=size.label)
        for size, style in zip(sizes, _styles(sizes), strict=True)
    ]
    figure.legend(handles=styles, loc="outside upper right", ncols=len(styles), frameon=False)


def _name_of(experts: int) -> str:
    return f"{experts} experts" if experts else "dense"


def _styles(sizes: Sequence[Size]) -> list[str]:
    return [STYLES[place % len(STYLES)] for place in reversed(range(len(sizes)))]


def _colours(sizes: Sequence[Size]) -> dict[int, str]:
    """Chooses colours by number of experts: dense models grey, sparse ones viridis, darker with more experts."""
    experts = sorted({summary.experts for size in sizes for summary in size.sparse})
    viridis = colormaps["viridis"](np.linspace(0.8, 0.0, len(experts)))
    return {0: "0.45"} | {number: to_hex(colour) for number, colour in zip(experts, viridis, strict=True)}
