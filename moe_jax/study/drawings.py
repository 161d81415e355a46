"""Pictures of one routing decision: who goes where, and which expert had too few seats.

S tokens of a group, E experts, A assignments of a group, C capacity.
"""

from collections.abc import Sequence

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
    if labels is None:
        labels = [str(i) for i in range(tokens)]
    require(len(labels) == tokens, "labels", labels, f"{tokens} texts, one for each token of the group")
    width, height = 0.27 * tokens, 0.36 * experts
    figure = Figure(figsize=(width + 4.2, height + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(width, 2.5), 2.2])
    mesh = _draw_cells(left, assignment, group, labels)
    _draw_requests(right, assignment, group)
    figure.colorbar(mesh, ax=right, label="combine weight", fraction=0.08, pad=0.04, ticks=[0, 0.5, 1])
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, frameon=False)
    return figure


def _draw_cells(axes: Axes, assignment: Assignment, group: int, labels: Sequence[str]) -> QuadMesh:
    """Tokens by experts: combine weights as shades, dropped requests as crosses."""
    run = np.asarray(assignment.dispatch_mask()[group]).T
    weight = np.ma.masked_where(~run, np.asarray(assignment.combine_weights()[group]).T)
    mesh = axes.pcolormesh(
        np.arange(assignment.num_tokens),
        np.arange(assignment.num_experts),
        weight,
        cmap=_shades(),
        vmin=0,
        vmax=1,
        shading="nearest",
    )
    dropped = np.asarray(assignment.requested[group] & ~assignment.kept[group])
    token, expert = np.asarray(assignment.token[group])[dropped], np.asarray(assignment.expert[group])[dropped]
    axes.scatter(token, expert, marker="x", color=DROPPED, s=36, linewidths=2, label="dropped")
    axes.set_xlim(-0.5, assignment.num_tokens - 0.5)
    # Texts of code may hold dollar signs, which are no formulas here.
    texts = [label.translate(VISIBLE) for label in labels]
    rotation = 0 if all(len(text) == 1 for text in texts) else 90
    axes.set_xticks(np.arange(assignment.num_tokens), texts, rotation=rotation, family="monospace", parse_math=False)
    axes.set_yticks(np.arange(assignment.num_experts))
    axes.set_xlabel("token")
    axes.set_ylabel("expert")
    _draw_lattice(axes, assignment)
    return mesh


def _draw_lattice(axes: Axes, assignment: Assignment) -> None:
    """Thin lines between the cells, by which to find the token under a cell."""
    axes.set_xticks(np.arange(assignment.num_tokens - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(assignment.num_experts - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)


def _draw_requests(axes: Axes, assignment: Assignment, group: int) -> None:
    """Each expert's requests, the seats taken and the dropped ones end to end, and the capacity."""
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
    """How many of the assignments `which` [G, A] fall on each expert of the group."""
    expert = np.asarray(assignment.expert[group])[np.asarray(which[group])]
    return np.bincount(expert, minlength=assignment.num_experts).astype(float)


def _shades() -> Colormap:
    """Light to dark, but never white: an assignment of weight near 0 is carried out all the same."""
    return LinearSegmentedColormap.from_list("weight", colormaps["Blues"](np.linspace(0.25, 1.0, 64)))
