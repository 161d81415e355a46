"""The report of a study after a paper's table: the paper's figures beside ours."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_jax.configuration import require_name
from moe_jax.reports.document import Document, conditions, provenance
from moe_jax.reports.paper_measures import MEASURES, Compared
from moe_jax.reports.plots import LOAD_READING, plot_expert_load, plot_losses
from moe_jax.reports.tables import NOTHING, markdown_rows, with_error, with_interval
from moe_jax.results.measures import diverged, value_of
from moe_jax.results.rows import Row, require_comparable
from moe_jax.results.summary import COSTS
from moe_jax.statistics.estimates import Estimate, estimate, paired_difference


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A paper's table, and the measures of ours that stand beside it.

    Attributes:
      title: of the study.
      place: authors, year and table.
      figures: the paper's figures in words: the quantity, the length of training, and whether higher is better.
      values: the paper's figure of each model, as it prints it; the models in its order.
      baseline: the model that ours are compared with.
      metric: of ours, see `value_of`; of `loss` its negative is printed, the paper's negative log perplexity.
      others: the paper's figures of further measures by model, named as in `moe_jax.reports.paper_measures.MEASURES`;
        each stands beside ours.
      teachers: whose gain over the baseline a model keeps a share of (measure `share_of_gain`).
    """

    title: str
    place: str
    figures: str
    values: Mapping[str, str]
    baseline: str
    metric: str = "loss"
    others: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    teachers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require_name(self.baseline, self.values, "baseline")
        for measure, figures in self.others.items():
            require_name(measure, MEASURES, "others")
            for name in figures:
                require_name(name, self.values, f"others.{measure}")

    @property
    def name(self) -> str:
        """The metric's name in print."""
        return "negative log perplexity" if self.metric == "loss" else self.metric.replace("_", " ")

    def value(self, row: Row) -> float:
        """Returns a run's figure; higher is better."""
        value = value_of(row, self.metric)
        return -value if self.metric == "loss" else value


def write_paper_report(rows: Sequence[Row], directory: Path, table: PaperTable, command: str) -> Path:
    """Writes `README.md` with its figures into `directory` and returns its path.

    Args:
      rows: of one corpus, of models that the paper's table has; those of runs that diverged among them.
      directory: made if it is not there; an earlier report in it is replaced. Notes in it on the same rows
        (`moe_jax.results.notes`) go into the report.
      table: the paper's.
      command: what reproduces the results.

    Raises:
      ConfigError: a row's model is not in the paper's table, the baseline has no row, or the rows do not belong in one
        table.
    """
    require_comparable(rows)
    for row in rows:
        require_name(row["name"], table.values, "name")
    finished = [row for row in rows if not diverged(row)]
    require_name(table.baseline, sorted({row["name"] for row in finished}), "baseline")
    # Seconds of runs side by side say little; those of steps timed by turns do.
    timed = all("step_seconds" in row for row in finished)
    costs = [cost for cost in COSTS if timed or cost != "seconds"]
    document = Document(table.title)
    document.add(
        f"{table.place}: {table.figures}.",
        conditions(rows),
        paper_markdown(rows, table),
        _columns(table, len(rows) > len(finished)),
    )
    over = ", ".join(COSTS[cost] for cost in costs)
    document.add_figure(plot_losses(finished, table.baseline, costs), "loss.png", f"Validation loss over {over}")
    document.add(
        "Lines are means over seeds, bands their range. A dot marks where a mean first reaches the final loss of "
        f"{table.baseline}.",
    )
    document.add_notes(directory)
    load = plot_expert_load(finished)
    if load is not None:
        document.add("## Load")
        document.add_figure(load, "load.png", "Load of each expert over training")
        document.add(LOAD_READING)
    document.add("## Provenance", provenance(rows, command))
    return document.write(directory)


def _columns(table: PaperTable, some_diverged: bool) -> str:
    """Says what our columns are, one line each."""
    unit = "nats per target token, " if table.metric == "loss" else ""
    meanings = {
        f"ours, {table.name}": f"on validation text after the last step, {unit}higher is better; ± is one standard "
        "error over seeds",
        "Δ": f"our difference to {table.baseline}, paired by seed, with its 95% interval (Student's t); above "
        "0 is better",
        **{MEASURES[name].title: MEASURES[name].meaning for name in table.others if MEASURES[name].meaning},
        "FLOPs": f"the training FLOPs of a token's active parameters, relative to {table.baseline}",
        "diverged": "seeds that diverged; the other columns leave them out" if some_diverged else "no seed did",
    }
    return "\n".join(f"- {title}: {meaning}." for title, meaning in meanings.items())


def paper_markdown(rows: Sequence[Row], table: PaperTable) -> str:
    """Writes the table: the paper's figure of each model that has a row, and ours."""
    groups = {name: [row for row in rows if row["name"] == name] for name in table.values}
    finished = {name: {row["seed"]: row for row in runs if not diverged(row)} for name, runs in groups.items()}
    base = finished[table.baseline]
    flops = groups[table.baseline][0]["flops_per_token"]
    titles = [title for name in table.others for title in (f"{MEASURES[name].title}: paper", "ours")]
    lines = [["model", table.place, f"ours, {table.name}", "Δ", *titles, "FLOPs", "seeds", "diverged"]]
    for name, runs in groups.items():
        if not runs:
            continue
        kept = list(finished[name].values())
        lost = len(runs) - len(kept)
        values = with_error(estimate([table.value(row) for row in kept]), ".4f") if kept else NOTHING
        change = with_interval(_difference(kept, base, table) if name != table.baseline else None, "+.4f")
        compared = Compared(name, table.baseline, table.teachers.get(name), finished, table.value)
        others = []
        for measure, figures in table.others.items():
            others += [figures.get(name, NOTHING), MEASURES[measure].ours(compared) if kept else NOTHING]
        share = f"{runs[0]['flops_per_token'] / flops:.3f}"
        last = [share, str(len(runs)), str(lost) if lost else NOTHING]
        lines.append([name, table.values[name], values, change, *others, *last])
    return markdown_rows(lines)


def _difference(runs: Sequence[Row], base: Mapping[int, Row], table: PaperTable) -> Estimate | None:
    """Compares the runs that share a seed; None if none do."""
    pairs = [(table.value(row), table.value(base[row["seed"]])) for row in runs if row["seed"] in base]
    return paired_difference(*zip(*pairs, strict=True)) if pairs else None
