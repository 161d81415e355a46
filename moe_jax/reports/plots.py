"""The figures of a study: loss against its cost, and the load of experts."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from moe_jax.results.curves import curve_frame, reached_at
from moe_jax.results.rows import Row, final_loss
from moe_jax.results.summary import COSTS, ModelSummary, experts_of, group_by_name

BLUE = "#3b528b"
"""Viridis's blue, for what has one colour."""

DOTTED = {"color": "black", "linestyle": ":", "linewidth": 1.2}

EARLY = 0.15
"""Share of a run whose losses may leave the plot: they fall so fast that they would flatten all that follows."""


LOAD_COLUMNS = 4
"""Panels of experts' loads side by side."""


def plot_losses(rows: Sequence[Row], baseline: str, costs: Sequence[str] = tuple(COSTS)) -> Figure:
    """Plots validation loss over each of `costs`, keys of COSTS.

    A line is the mean over seeds and its band their range; a dot marks where a mean first reaches the baseline's final
    loss, which is the dotted line.
    """
    figure = Figure(figsize=(1 + 4 * len(costs), 4.8), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    groups = group_by_name(rows)
    colours = _colours(groups, baseline)
    target = float(np.mean([final_loss(row) for row in groups[baseline]]))
    for axes, cost in zip(panels, costs, strict=True):
        axes.axhline(target, **DOTTED, label=f"final loss of {baseline}")
        for name, group in groups.items():
            _plot_curve(axes, group, cost, target, name, colours[name])
        axes.set_xlabel(COSTS[cost])
        axes.set_xlim(left=0)
        if cost == "flops":
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("validation loss (nats per token)")
    panels[0].set_ylim(*loss_limits(rows))
    columns = 2 * len(costs)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


LOAD_READING = (
    "Rows are the experts of each sparse model's last sparse layer, columns the evaluations of its run of the lowest "
    "seed. White is an even share of the tokens, dark blue none, dark red twice the even share or more."
)
"""Explanation of `plot_expert_load` for the reader of a report."""


def plot_expert_load(rows: Sequence[Row]) -> Figure | None:
    """Plots each expert's load over training, relative to an even share; None without sparse models.

    One panel per sparse model: its last sparse layer, in the run of the lowest seed. Experts of different layers or
    seeds have nothing in common but their index, so their average would hide the imbalance.
    """
    runs = [group[0] for group in group_by_name(rows).values() if experts_of(group[0])]
    if not runs:
        return None
    columns = min(len(runs), LOAD_COLUMNS)
    lines = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(1.4 + 3.9 * columns, 3.9 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.flat[: len(runs)])
    for axes in grid.flat[len(runs) :]:
        axes.remove()
    for axes, row in zip(panels, runs, strict=True):
        layer = _last_layer(row)
        load = _relative_load(row, layer)
        steps = [point["step"] for point in row["curve"]]
        mesh = axes.pcolormesh(steps, np.arange(len(load)), load, cmap="RdBu_r", vmin=0, vmax=2, shading="nearest")
        axes.set_title(f"{row['name']}\n{layer.replace('_', ' ')}, seed {row['seed']}")
        axes.set_xlabel("steps")
        axes.yaxis.get_major_locator().set_params(integer=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("expert")
    label = "load / even share"
    figure.colorbar(mesh, ax=panels, extend="max", ticks=[0, 0.5, 1, 1.5, 2], label=label, fraction=0.03, pad=0.01)
    return figure


def plot_models(summaries: Sequence[ModelSummary], baseline: str, router_times: Mapping[str, float]) -> Figure:
    """Plots models, in the given order: final loss minus the baseline's, load, drops, entropy and cost.

    The difference is paired by seed and has its 95% interval. Bars are of the last evaluation, the diamond beside a
    load is that of the last training step. Dotted lines: the baseline, an even load, a step as fast as the baseline's.

    Args:
      summaries: the models, from the top.
      baseline: name of one of them.
      router_times: milliseconds of a router alone, by model.
    """
    panels: list[tuple[str, Callable[[ModelSummary], float | None], float | None]] = [
        ("load, max / mean", lambda s: s.routing.get("load_max_over_mean"), 1.0),
        ("dropped", lambda s: s.routing.get("fraction_dropped"), None),
        ("entropy (nats)", lambda s: s.routing.get("entropy"), None),
        (f"step time / {baseline}'s", lambda s: s.step_time and s.step_time.mean, 1.0),
        ("router alone (ms)", lambda s: router_times.get(s.name), None),
    ]
    figure = Figure(figsize=(15, 1.4 + 0.3 * len(summaries)), layout="constrained")
    loss, *others = figure.subplots(1, 1 + len(panels), sharey=True, width_ratios=[2, *[1] * len(panels)])
    colours = ["0.4" if summary.name == baseline else BLUE for summary in summaries]
    for place, (summary, colour) in enumerate(zip(summaries, colours, strict=True)):
        if summary.difference is not None:
            low, high = summary.difference.interval or (summary.difference.mean,) * 2
            loss.plot([low, high], [place, place], color=colour, linewidth=1.4)
            loss.plot(summary.difference.mean, place, "o", color=colour, markersize=5)
        if "load_max_over_mean" in summary.training:
            others[0].plot(summary.training["load_max_over_mean"], place, "D", color="black", markersize=4)
    loss.axvline(0.0, **DOTTED)
    loss.set_xlabel(f"validation loss - {baseline}'s (nats per token)")
    loss.locator_params(axis="x", nbins=6)
    for axes, (label, value, line) in zip(others, panels, strict=True):
        widths = [value(summary) or 0.0 for summary in summaries]
        axes.barh(range(len(summaries)), widths, height=0.6, color=colours)
        axes.set_xlabel(label)
        if line is not None:
            axes.axvline(line, **DOTTED)
    for axes in (loss, *others):
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    loss.set_yticks(range(len(summaries)), [summary.name for summary in summaries])
    loss.invert_yaxis()
    return figure


def _plot_curve(axes: Axes, rows: Sequence[Row], cost: str, target: float, name: str, colour: str) -> None:
    """Draws one model: mean, range over seeds, and the dot where the mean reaches `target`."""
    points = curve_frame(rows).groupby("step")
    x, losses = points[cost].mean(), points["validation_loss"]
    mean = losses.mean()
    axes.fill_between(x, losses.min(), losses.max(), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, mean, color=colour, linewidth=1.8, label=name)
    reached = reached_at(x.to_numpy(), mean.to_numpy(), target)
    if reached is not None:
        axes.plot(reached, target, "o", color=colour, markersize=6, markeredgecolor="white")


def _colours(groups: Mapping[str, Sequence[Row]], baseline: str) -> dict[str, str]:
    """Chooses colours: the baseline grey, other dense models red to yellow, sparse ones viridis by their experts."""
    sparse = [name for name, group in groups.items() if experts_of(group[0])]
    others = [name for name in groups if name not in (*sparse, baseline)]
    colours = {baseline: "0.45"}
    colours |= _shades(others, "YlOrRd", np.linspace(0.95, 0.35, len(others)))
    return colours | _shades(sparse, "viridis", np.linspace(0.8, 0.0, len(sparse)))


def _shades(names: Sequence[str], colormap: str, places: Float[np.ndarray, " names"]) -> dict[str, str]:
    return {name: to_hex(colour) for name, colour in zip(names, colormaps[colormap](places), strict=True)}


def loss_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Returns limits of the loss axis that show all but each run's early fall, and ignore diverged evaluations."""
    late = [
        point["validation_loss"]
        for row in rows
        for point in row["curve"]
        if point["step"] >= EARLY * row["curve"][-1]["step"] and math.isfinite(point["validation_loss"])
    ]
    low, high = (min(late), max(late)) if late else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _last_layer(row: Row) -> str:
    """Returns the name of a run's last sparse layer, by the number at its end (`layer_10` comes after `layer_9`)."""
    return max(row["curve"][-1]["load"], key=lambda name: int(name.rpartition("_")[2]))


def _relative_load(row: Row, layer: str) -> Float[np.ndarray, "E points"]:
    """Returns loads divided by their mean over experts, at every evaluation."""
    load = np.array([point["load"][layer] for point in row["curve"]]).T
    return load / load.mean(axis=0)
