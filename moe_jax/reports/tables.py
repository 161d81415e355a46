"""Tables of models, for terminals and for Markdown."""

from collections.abc import Callable, Collection, Sequence

from matplotlib.ticker import EngFormatter

from moe_jax.results.rows import Row
from moe_jax.results.summary import ModelSummary, SpeedUp, summarize
from moe_jax.statistics.estimates import Estimate

NOTHING = "-"

# A column's title, and one model's cell in it.
Column = tuple[str, Callable[[ModelSummary], str]]

quantity = EngFormatter(places=2)
"""Writes a large number with its unit prefix, such as 2.16 M."""


def format_table(rows: Sequence[Row], baseline: str = "dense") -> str:
    """Writes a compact table of the models for a terminal, also while a sweep is under way.

    Raises:
      ConfigError: the rows do not belong in one table.
    """
    header, *lines = _cells(summarize(rows, baseline), TERMINAL)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    aligned = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in (header, *lines)]
    return "\n".join("  ".join(line) for line in aligned)


def markdown_table(summaries: Sequence[ModelSummary], columns: Sequence[Column]) -> str:
    """Writes a table in Markdown, its numbers aligned to the right."""
    return markdown_rows(_cells(summaries, columns))


def markdown_rows(cells: Sequence[Sequence[str]], right: Collection[int] | None = None) -> str:
    """Writes rows of cells as a table in Markdown.

    Args:
      cells: the header, then the lines.
      right: columns to align to the right; None is all but the first.
    """
    header, *lines = cells
    right = range(1, len(header)) if right is None else right
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _cells(summaries: Sequence[ModelSummary], columns: Sequence[Column]) -> list[list[str]]:
    return [[title for title, _ in columns], *([cell(summary) for _, cell in columns] for summary in summaries)]


def _optional(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _mean(value: Estimate | None, form: str) -> str:
    return NOTHING if value is None else format(value.mean, form)


def with_error(value: Estimate, form: str) -> str:
    """Writes a mean with its standard error, if there is one."""
    error = "" if value.standard_error is None else f" ± {value.standard_error:{form}}"
    return f"{value.mean:{form}}{error}"


def with_interval(value: Estimate | None, form: str) -> str:
    """Writes a mean with its interval, if there is one."""
    if value is None or value.interval is None:
        return _mean(value, form)
    low, high = value.interval
    return f"{value.mean:{form}} [{low:{form}}, {high:{form}}]"


def _in_standard_errors(value: Estimate | None) -> str:
    return NOTHING if value is None else _optional(value.in_standard_errors, "+.1f")


def speed_up_cell(speed_up: SpeedUp | None, show: Callable[[Estimate, str], str]) -> str:
    """Writes a speed-up by `show`, or how many seeds reached the loss if not all did."""
    if speed_up is None:
        return NOTHING
    if speed_up.ratio is None:
        return f"{speed_up.reached} of {speed_up.seeds} seeds" if speed_up.reached else "not reached"
    return show(speed_up.ratio, ".2f")


_NAME: list[Column] = [("model", lambda s: s.name)]
ROUTING: list[Column] = [
    ("dropped", lambda s: _optional(s.routing.get("fraction_dropped"), ".1%")),
    ("load max/mean", lambda s: _optional(s.routing.get("load_max_over_mean"), ".2f")),
]

QUALITY: list[Column] = [
    *_NAME,
    ("experts", lambda s: str(s.experts or NOTHING)),
    ("parameters", lambda s: quantity(s.parameters)),
    ("active", lambda s: quantity(s.active_parameters)),
    ("training FLOPs/token", lambda s: quantity(s.flops_per_token)),
    ("seeds", lambda s: str(len(s.seeds))),
    ("validation loss", lambda s: with_error(s.loss, ".4f")),
    ("bits/byte", lambda s: _mean(s.bits_per_byte, ".4f")),
    ("Δ loss", lambda s: with_interval(s.difference, "+.4f")),
    ("Δ in s.e.", lambda s: _in_standard_errors(s.difference)),
]
COST: list[Column] = [
    *_NAME,
    ("speed-up in steps", lambda s: speed_up_cell(s.speed_up.get("step"), with_interval)),
    ("in training FLOPs", lambda s: speed_up_cell(s.speed_up.get("flops"), with_interval)),
    ("in seconds", lambda s: speed_up_cell(s.speed_up.get("seconds"), with_interval)),
    ("relative step time", lambda s: with_interval(s.step_time, ".2f")),
    *ROUTING,
]
TERMINAL: list[Column] = [
    *_NAME,
    ("seeds", lambda s: str(len(s.seeds))),
    ("loss", lambda s: with_error(s.loss, ".4f")),
    ("Δ loss", lambda s: _mean(s.difference, "+.4f")),
    ("x steps", lambda s: speed_up_cell(s.speed_up.get("step"), _mean)),
    ("x FLOPs", lambda s: speed_up_cell(s.speed_up.get("flops"), _mean)),
    ("x seconds", lambda s: speed_up_cell(s.speed_up.get("seconds"), _mean)),
    ("step time", lambda s: _mean(s.step_time, ".2f")),
    *ROUTING,
]
LOAD: list[Column] = [
    *_NAME,
    *ROUTING,
    ("in training", lambda s: _optional(s.training.get("load_max_over_mean"), ".2f")),
    ("load CV", lambda s: _optional(s.routing.get("load_cv"), ".2f")),
    ("load Gini", lambda s: _optional(s.routing.get("load_gini"), ".2f")),
    ("dead experts", lambda s: _optional(s.routing.get("dead_experts"), ".1%")),
    ("tokens without expert", lambda s: _optional(s.routing.get("tokens_unrouted"), ".1%")),
    ("entropy (nats)", lambda s: _optional(s.routing.get("entropy"), ".2f")),
]
