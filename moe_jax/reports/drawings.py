"""Pictures of routing decisions: who goes where, and which expert had too few seats.

S tokens of a group, E experts, A assignments of a group, C capacity.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.decision import Decision

KEPT = "#3b528b"
"""Colour of the seats taken: viridis's blue, as in the figures of a study."""

DROPPED = "#d62728"
"""Colour of what was asked for and got no seat."""

VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})


def draw_assignment(assignment: Assignment, group: int = 0, labels: Sequence[str] | None = None) -> Figure:
    """Draws who goes where in one group, and beside it what each expert was asked.

    Left, tokens by experts: a filled cell is an assignment that is carried out, darker with more weight; a red cross is
    one that was requested and dropped. Right, each expert's requests: the seats it filled, those it dropped, and the
    capacity as a line.

    Args:
      assignment: any router's, outside of jit.
      group: which group of it.
      labels: a text for each of the S tokens, in which blanks are made visible; their indices if None.

    Raises:
      ConfigError: there is no such group, or the labels are not S.
    """
    require(0 <= group < assignment.num_groups, "group", group, f"0 to {assignment.num_groups - 1}")
    tokens, experts = assignment.num_tokens, assignment.num_experts
    labels = _token_labels(labels, tokens)
    width, height = 0.27 * tokens, 0.36 * experts
    figure = Figure(figsize=(width + 4.2, height + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(width, 2.5), 2.2])
    mesh = _draw_cells(left, assignment, group, labels)
    _draw_requests(right, assignment, group)
    figure.colorbar(mesh, ax=right, label="combine weight", fraction=0.08, pad=0.04, ticks=[0, 0.5, 1])
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, frameon=False)
    return figure


def draw_assignments(
    decisions: Mapping[str, Decision],
    group: int = 0,
    labels: Sequence[str] | None = None,
    columns: int = 3,
) -> Figure:
    """Draws who goes where in one group for many decisions on the same tokens, a small panel for each.

    The cells are those of `draw_assignment`; above each panel its name, the capacity, and how many of the requests were
    dropped. Of a router that mixes tokens a cell is the share of the expert's slots in what the token gets.

    Args:
      decisions: by name; all of the same S and E.
      group: which group of them.
      labels: a text for each of the S tokens; their indices if None.
      columns: panels side by side.

    Raises:
      ConfigError: there is no such group, the labels are not S, or a decision is about other tokens or experts.
    """
    weights = {name: np.asarray(decision.combine_weights()) for name, decision in decisions.items()}
    shapes = {name: weight.shape for name, weight in weights.items()}
    groups, tokens, experts = next(iter(shapes.values()))
    for name, shape in shapes.items():
        require(
            shape == (groups, tokens, experts), f"decisions[{name!r}]", shape, f"[G, S, E] of {groups, tokens, experts}"
        )
    require(0 <= group < groups, "group", group, f"0 to {groups - 1}")
    labels = _token_labels(labels, tokens)
    rows = -(-len(decisions) // columns)
    size = columns * (0.17 * tokens + 0.5) + 0.8, rows * (0.19 * experts + 0.45) + 1.1
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in panels[len(decisions) :]:
        axes.remove()
    for i, (axes, (name, decision)) in enumerate(zip(panels, decisions.items(), strict=False)):
        mesh = _draw_decision(axes, decision, group, weights[name][group])
        axes.set_title(f"{name}: {decision.describe(group)}", loc="left", fontsize=9)
        _label_tokens(axes, labels if i + columns >= len(decisions) else [])
        axes.tick_params(labelsize=8)
        if i % columns == 0:
            axes.set_ylabel("expert")
    figure.colorbar(mesh, ax=figure.axes, label="combine weight", fraction=0.015, pad=0.01, aspect=60, extend="max")
    return figure


def _token_labels(labels: Sequence[str] | None, tokens: int) -> Sequence[str]:
    if labels is None:
        return [str(i) for i in range(tokens)]
    require(len(labels) == tokens, "labels", labels, f"{tokens} texts, one for each token of the group")
    return labels


def _draw_cells(axes: Axes, assignment: Assignment, group: int, labels: Sequence[str]) -> QuadMesh:
    """Draws tokens by experts, with labels: combine weights as shades, dropped requests as crosses."""
    mesh = _draw_decision(axes, assignment, group, np.asarray(assignment.combine_weights()[group]), 36.0)
    _label_tokens(axes, labels)
    axes.set_xlabel("token")
    axes.set_ylabel("expert")
    return mesh


def _draw_decision(
    axes: Axes, decision: Decision, group: int, weight: Float[np.ndarray, "S E"], size: float = 14.0
) -> QuadMesh:
    """Draws cells for the weights that are carried out, and crosses of `size` for dropped requests."""
    tokens, experts = weight.shape
    run = np.asarray(decision.dispatch_mask()[group])
    mesh = axes.pcolormesh(
        np.arange(tokens),
        np.arange(experts),
        np.ma.masked_where(~run, weight).T,
        cmap=_shades(),
        vmin=0,
        vmax=1,
        shading="nearest",
    )
    token, expert = np.nonzero(np.asarray(decision.dropped_mask()[group]))
    axes.scatter(token, expert, marker="x", color=DROPPED, s=size, linewidths=np.sqrt(size) / 3, label="dropped")
    axes.set_xlim(-0.5, tokens - 0.5)
    axes.set_yticks(np.arange(experts))
    _draw_lattice(axes, tokens, experts)
    return mesh


def _label_tokens(axes: Axes, labels: Sequence[str]) -> None:
    # Texts of code may hold dollar signs, which are no formulas here.
    texts = [label.translate(VISIBLE) for label in labels]
    rotation = 0 if all(len(text) == 1 for text in texts) else 90
    axes.set_xticks(np.arange(len(texts)), texts, rotation=rotation, family="monospace", parse_math=False)


def _draw_lattice(axes: Axes, tokens: int, experts: int) -> None:
    """Draws thin lines between the cells, by which to find the token under a cell."""
    axes.set_xticks(np.arange(tokens - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(experts - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)


def _draw_requests(axes: Axes, assignment: Assignment, group: int) -> None:
    """Draws each expert's requests, the seats taken and the dropped ones end to end, and the capacity."""
    kept = _count(assignment, group, assignment.kept)
    dropped = _count(assignment, group, assignment.requested & ~assignment.kept)
    experts = np.arange(assignment.num_experts)
    axes.barh(experts, kept, height=0.7, color=KEPT, label="seats used")
    axes.barh(experts, dropped, left=kept, height=0.7, color=DROPPED, label="dropped")
    line = f"capacity {assignment.capacity}"
    axes.axvline(assignment.capacity, color="black", linestyle="--", linewidth=1.4, label=line)
    axes.set_xlim(0, 1.08 * max(assignment.capacity, (kept + dropped).max()))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(axis="y", which="both", left=False, labelleft=False)
    axes.set_xlabel("requests")


def _count(assignment: Assignment, group: int, which: jax.Array) -> Float[np.ndarray, "E"]:
    """Counts the assignments `which` [G, A] that fall on each expert of the group."""
    expert = np.asarray(assignment.expert[group])[np.asarray(which[group])]
    return np.bincount(expert, minlength=assignment.num_experts).astype(float)


def _shades() -> Colormap:
    """Returns colours from light to dark, but never white: an assignment of weight near 0 is carried out too."""
    return LinearSegmentedColormap.from_list("weight", colormaps["Blues"](np.linspace(0.25, 1.0, 64)))
