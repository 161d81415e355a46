"""The report of a comparison of routers: for each task, loss, balance and cost, as tables and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_jax.data.tasks import TASKS
from moe_jax.reports.document import Document, provenance
from moe_jax.reports.plots import plot_models
from moe_jax.reports.tables import LOAD, QUALITY, Column, markdown_table, with_interval
from moe_jax.results.rows import Row
from moe_jax.results.summary import ModelSummary, require_baseline, summarize


def write_router_report(
    rows_by_task: Mapping[str, Sequence[Row]],
    times: Mapping[str, float],
    directory: Path,
    command: str,
    balanced: Mapping[str, str],
    baseline: str = "dense",
) -> Path:
    """Writes `README.md` with its figures into `directory` and returns its path.

    Args:
      rows_by_task: of one corpus; every model with any number of seeds.
      times: milliseconds of a router alone, by `task/name`.
      directory: made if it is not there; an earlier report in it is replaced.
      command: what reproduces the results, printed for the reader.
      balanced: the names of models without balancing, and of their twins with it.
      baseline: name of the model that the others are compared with, in every task.

    Raises:
      ConfigError: a task has no row named `baseline`, or its rows do not belong in one table.
    """
    document = Document("Routers under equal conditions")
    document.add(_conditions(rows_by_task))
    for task, rows in rows_by_task.items():
        require_baseline(rows, baseline)
        summaries = sorted(summarize(rows, baseline), key=lambda summary: summary.loss.mean)
        alone = {summary.name: times[f"{task}/{summary.name}"] for summary in summaries if summary.experts}
        document.add(f"## {TASKS.by_name[task].title}")
        figure = plot_models(summaries, baseline, alone)
        document.add_figure(figure, f"{task}.png", "Loss, balance and cost of each router")
        document.add(
            markdown_table(summaries, QUALITY),
            f"Models are sorted by loss. ± is one standard error over seeds. Δ is the difference to {baseline}, paired "
            "by seed, with its 95% interval (Student's t) and its size in standard errors.",
            "### Balance, at the last evaluation",
            _balancing(summaries, balanced),
            markdown_table([s for s in summaries if s.experts], LOAD),
            "The load counts requests, before any is dropped. Each figure is a mean over layers and seeds. Evaluation "
            "has its own capacity factor, and neither exploration nor forced balance. The load in training is that of "
            "the last step.",
            "### Cost",
            markdown_table([s for s in summaries if s.experts], _cost(alone)),
            "The time of the router alone is forward and backward, for one layer and one batch, routers by turns. The "
            f"step time is relative to that of {baseline}, paired by seed.",
        )
    all_rows = [row for rows in rows_by_task.values() for row in rows]
    document.add_notes(directory)
    document.add("## Provenance", provenance(all_rows, command))
    return document.write(directory)


def _conditions(rows_by_task: Mapping[str, Sequence[Row]]) -> str:
    row = next(iter(rows_by_task.values()))[0]
    model, data = row["config"]["model"], row["config"]["data"]
    return (
        f"One model of {model['num_layers']} layers of width {model['model_dim']}, {row['config']['steps']} steps of "
        f"{data['batch_size']} sequences of {data['sequence_length']} tokens. Every mixture of k experts per token has "
        "experts of 1/k of the dense layer's width, and all mixtures but the dense one have the same number of them "
        "for each choice, so the same number of parameters."
    )


def _balancing(summaries: Sequence[ModelSummary], balanced: Mapping[str, str]) -> str:
    """Says what balancing does, for each router that stands beside itself without it."""
    by_name = {summary.name: summary for summary in summaries}
    pairs = [(by_name[balanced[name]], by_name[name]) for name in by_name if balanced.get(name) in by_name]
    lines = [
        f"- {with_it.name}: the busiest expert has {with_it.routing['load_max_over_mean']:.2f} times its share, and "
        f"{without.routing['load_max_over_mean']:.2f} times without balancing; {with_it.routing['dead_experts']:.0%} "
        f"of the experts are idle, and {without.routing['dead_experts']:.0%} without."
        for with_it, without in pairs
    ]
    return "\n".join(lines)


def _cost(times: Mapping[str, float]) -> list[Column]:
    return [
        ("model", lambda s: s.name),
        ("router (ms)", lambda s: f"{times[s.name]:.2f}"),
        ("relative step time", lambda s: with_interval(s.step_time, ".2f")),
    ]
