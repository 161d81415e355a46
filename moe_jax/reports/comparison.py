"""The report of sparse models beside one dense baseline: a headline, quality, cost and load."""

from collections.abc import Sequence
from pathlib import Path

from moe_jax.reports.document import Document, provenance
from moe_jax.reports.plots import LOAD_READING, plot_expert_load, plot_losses
from moe_jax.reports.tables import COST, QUALITY, markdown_table
from moe_jax.results.rows import Row
from moe_jax.results.summary import ModelSummary, require_baseline, summarize

PAPER = (
    "For comparison, Switch Transformer (Fedus et al. 2021) with 64 experts reached the quality of T5-Base with 13% of "
    "the steps (7.5 times fewer) and about 14% of the time (7 times less), at its own, much larger scale."
)


def headline(rows: Sequence[Row], baseline: str = "dense") -> str:
    """Says which models reached the baseline's final validation loss, and with which share of its costs.

    Raises:
      ConfigError: the rows do not belong in one table.
    """
    summaries = summarize(rows, baseline)
    losses = {summary.name: summary.loss for summary in summaries}
    if baseline not in losses:
        return f"No run of {baseline} has finished, so there is nothing to compare with yet."
    loss = losses[baseline]
    seeds = f"mean over {loss.n} seeds" if loss.n > 1 else "one seed"
    ended = f"The baseline, {baseline}, ended with a validation loss of {loss.mean:.4f} nats per token ({seeds})."
    verdicts = [_verdict(summary) for summary in summaries if summary.speed_up]
    return " ".join([ended, *verdicts, PAPER]) if verdicts else ended


def write_report(
    rows: Sequence[Row], directory: Path, baseline: str = "dense", title: str = "Results", command: str = ""
) -> Path:
    """Writes `README.md` with its figures into `directory` and returns its path.

    Args:
      rows: of one corpus; every model with any number of seeds.
      directory: made if it is not there; an earlier report in it is replaced.
      baseline: name of the model that the others are compared with.
      title: heading of the report.
      command: what reproduces the results, printed for the reader; left out if empty.

    Raises:
      ConfigError: no row is named `baseline`, or the rows do not belong in one table.
    """
    require_baseline(rows, baseline)
    summaries = summarize(rows, baseline)
    document = Document(title)
    document.add(headline(rows, baseline))
    document.add_figure(
        plot_losses(rows, baseline), "loss.png", "Validation loss over steps, training FLOPs and seconds"
    )
    document.add(
        "Lines are means over seeds, bands their range. A dot marks where a mean first reaches the final loss of "
        f"{baseline}.",
        "## Quality",
        markdown_table(summaries, QUALITY),
        f"± is one standard error over seeds. Δ is the difference to {baseline}, paired by seed, with its 95% interval "
        "(Student's t) and its size in standard errors. FLOPs are those of the active parameters.",
        "## Cost",
        markdown_table(summaries, COST),
        f"The speed-up is the cost of the final loss of {baseline} over the model's cost of that loss, paired by seed, "
        f"with its 95% interval. The step time is relative to that of {baseline}. Every run follows its learning-rate "
        "schedule to the end, so a model that reaches that loss early does so before its learning rate has come down.",
    )
    load = plot_expert_load(rows)
    if load is not None:
        document.add("## Load")
        document.add_figure(load, "load.png", "Load of each expert over training")
        document.add(LOAD_READING)
    document.add_notes(directory)
    document.add("## Provenance", provenance(rows, command))
    return document.write(directory)


def _verdict(summary: ModelSummary) -> str:
    """Says with which share of the baseline's costs one model reached its loss, or that it did not."""
    steps = summary.speed_up["step"]
    if steps.ratio is None:
        some = f"with {steps.reached} of {steps.seeds} seeds only" if steps.reached else "not at all"
        return f"{summary.name} reached that {some}."
    share = {cost: 1 / speed_up.ratio.mean for cost, speed_up in summary.speed_up.items()}
    slower = " (slower on this machine)" if share["seconds"] > 1 else ""
    return (
        f"{summary.name} reached that with {share['step']:.0%} of the baseline's steps, {share['flops']:.0%} of its "
        f"training FLOPs and {share['seconds']:.0%} of its seconds{slower}."
    )
