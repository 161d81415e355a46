"""The report of sparse models of several sizes beside dense ones: quality, cost, energy and few-shot results."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from moe_jax.reports.document import Document, provenance
from moe_jax.reports.size_plots import plot_final_losses, plot_size_losses
from moe_jax.reports.tables import (
    NOTHING,
    QUALITY,
    ROUTING,
    Column,
    markdown_rows,
    markdown_table,
    quantity,
    speed_up_cell,
    with_interval,
)
from moe_jax.results.rows import Row, Score, final_loss, step_seconds
from moe_jax.results.sizes import Meter, Size, by_size, energy_of_training, energy_speed_up, meters
from moe_jax.results.summary import ModelSummary
from moe_jax.statistics.estimates import Estimate, estimate, paired_difference

SHOTS = {0: "zero-shot", 1: "one-shot"}
"""Names for numbers of solved examples; more are called few-shot."""


def write_size_report(
    groups: Mapping[str, Sequence[Row]],
    scores: Sequence[Score],
    directory: Path,
    *,
    title: str,
    paper: str,
    watts: float,
    counter: str | None,
    command: str,
) -> Path:
    """Writes `README.md` with its figures into `directory` and returns its path.

    Args:
      groups: rows of one corpus by size; of each size one dense model and any number of sparse ones, with any number of
        seeds.
      scores: of `score_runs`; of each model those of the same tasks and numbers of shots.
      directory: made if it is not there; an earlier report in it is replaced.
      title: heading of the report.
      paper: what the paper says, in sentences.
      watts: power that is assumed where energy is not counted.
      counter: name of what counted the rows' `step_joules`; None where nothing did.
      command: what reproduces the results.

    Raises:
      ConfigError: see `by_size` and `meters`.
    """
    rows = [row for group in groups.values() for row in group]
    sizes, energy = by_size(groups), meters(rows, watts, counter)
    models = [summary for size in sizes for summary in size.summaries]
    document = Document(title)
    document.add(paper, "Ours, on text and at a scale of our own:", findings(sizes, scores, energy[-1]))
    figure = plot_size_losses(sizes, energy[-1])
    document.add_figure(figure, "cost.png", "Validation loss over training FLOPs, tokens, seconds and energy")
    document.add(
        "Validation loss against the cost of training so far. Lines are means over seeds, bands their range; a colour "
        "is a number of experts, a style a size. The beginning of each run lies outside the panels.",
    )
    if len(sizes) > 1:
        caption = "Final loss over the FLOPs of a token, and differences to the dense models"
        document.add_figure(plot_final_losses(sizes), "size.png", caption)
        document.add(
            "Final loss over the active training FLOPs of a token, with 95% intervals (Student's t over seeds): on the "
            "left of each mean, on the right of the difference to the dense model of the size, paired by seed. Models "
            "of one size have the same FLOPs and are drawn a little apart."
        )
    document.add(
        "## Quality",
        markdown_table(models, QUALITY),
        "± is one standard error over seeds. Δ is the difference to the dense model of the size, paired by seed, with "
        "its 95% interval (Student's t) and its size in standard errors. FLOPs and active parameters are per token.",
        "## Cost of the dense model's quality",
        markdown_table([s for size in sizes for s in size.sparse], _speed_ups(sizes, energy)),
        "The dense model's cost of its final loss over the sparse model's cost of that loss, paired by seed, with its "
        "95% interval over seeds. Every step has the same number of tokens, so steps and tokens have the same ratio. "
        "Seconds and energy are steps times the cost of one step, timed apart from training, models by turns. Dropped "
        "tokens and the load of the busiest expert are those of the last evaluation.",
        "## Energy",
        markdown_table(models, _costs(sizes, energy)),
        _energy_note(energy),
        *_few_shot_sections(sizes, scores),
    )
    document.add_notes(directory)
    document.add("## Provenance", provenance(rows, command))
    return document.write(directory)


def findings(sizes: Sequence[Size], scores: Sequence[Score], meter: Meter) -> str:
    """Writes the findings as a list in Markdown: each size, tokens, more experts, larger models, and questions."""
    lines = [_of_size(size, meter) for size in sizes if size.sparse]
    lines += [_of_tokens(sizes), _of_experts(sizes), _of_scale(sizes), _of_questions(sizes, scores)]
    return "\n".join(f"- {line}" for line in lines if line)


def _of_size(size: Size, meter: Meter) -> str:
    """Compares the best sparse model with the dense one."""
    dense, best = size.dense, min(size.sparse, key=lambda summary: summary.loss.mean)
    ends = (
        f"{size.label} ({quantity(dense.active_parameters)} active parameters): {dense.name} ends with "
        f"{dense.loss.mean:.4f} nats per token, the best sparse model, {best.name}, with {best.loss.mean:.4f}"
    )
    if best.difference is None:
        return f"{ends}, on no seed in common."
    ends += f", a difference of {with_interval(best.difference, '+.4f')}."
    speed_up = best.speed_up | {"energy": energy_speed_up(size, best.name, meter)}
    reached = speed_up["step"]
    if reached.ratio is None:
        seeds = f"with {reached.reached} of {reached.seeds} seeds only" if reached.reached else "with no seed"
        return f"{ends} It reached the dense model's loss {seeds}."
    shares = {cost: f"{1 / found.ratio.mean:.0%}" for cost, found in speed_up.items()}
    return (
        f"{ends} It reached the dense model's loss with {shares['step']} of its tokens, {shares['flops']} of its "
        f"training FLOPs, {shares['seconds']} of its seconds and {shares['energy']} of its energy ({meter.name})."
    )


def _of_tokens(sizes: Sequence[Size]) -> str:
    """Counts the sparse models that reach the dense loss, and those that certainly do so with fewer tokens."""
    found = [summary.speed_up["step"] for size in sizes for summary in size.sparse if summary.speed_up]
    if not found:
        return ""
    ratios = [one.ratio for one in found if one.ratio is not None]
    sure = sum(ratio.interval is not None and ratio.interval[0] > 1 for ratio in ratios)
    return (
        f"Data efficiency: {len(ratios)} of {len(found)} sparse models reached the final loss of the dense model of "
        f"their size with every seed, {sure} of them with fewer tokens by their 95% interval."
    )


def _of_experts(sizes: Sequence[Size]) -> str:
    """Says whether the mean loss falls with each step to more experts."""
    falls = {
        size.label: all(b.loss.mean < a.loss.mean for a, b in itertools.pairwise(size.summaries))
        for size in sizes
        if len(size.sparse) > 1
    }
    if not falls:
        return ""
    always, not_always = ([label for label, is_so in falls.items() if is_so is kind] for kind in (True, False))
    said = [f"with every step in {', '.join(always)}"] if always else []
    said += [f"not with every step in {', '.join(not_always)}"] if not_always else []
    return f"More experts: from the dense model to the most experts the mean loss falls {'; '.join(said)}."


def _of_scale(sizes: Sequence[Size]) -> str:
    """Says whether the gain of the most experts that all sizes have grows from the smallest size to the largest."""
    gains = [{s.experts: s for s in size.sparse if s.difference is not None} for size in sizes]
    shared = set.intersection(*map(set, gains))
    if len(sizes) < 2 or not shared:
        return ""
    experts = max(shared)
    small, large = (_gains(sizes[end], gains[end][experts].name) for end in (0, -1))
    seeds = sorted(small.keys() & large.keys())
    if not seeds:
        return ""
    more = paired_difference([large[seed] for seed in seeds], [small[seed] for seed in seeds])
    lowered = ", ".join(f"{-by_experts[experts].difference.mean:.4f}" for by_experts in gains)
    return (
        f"Scale: {experts} experts lower the loss by {lowered} nats, from {sizes[0].label} to {sizes[-1].label}. "
        f"{sizes[-1].label} gains {with_interval(more, '+.4f')} more than {sizes[0].label}, paired by seed: "
        f"{_grows(more)}."
    )


def _gains(size: Size, name: str) -> dict[int, float]:
    """Returns the dense model's final loss minus the sparse one's, by seed."""
    losses = {(row["name"], row["seed"]): final_loss(row) for row in size.rows}
    dense = size.dense.name
    return {
        seed: losses[dense, seed] - loss
        for (model, seed), loss in losses.items()
        if model == name and (dense, seed) in losses
    }


def _grows(more: Estimate) -> str:
    if more.interval is None:
        return "one seed, which says nothing of chance"
    low, high = more.interval
    if low > 0:
        return "the gain grows with size"
    return "the gain shrinks with size" if high < 0 else f"{more.n} seeds cannot tell whether the gain grows"


def _of_questions(sizes: Sequence[Size], scores: Sequence[Score]) -> str:
    """Compares averages over tasks of the largest size, for each number of shots."""
    largest = sizes[-1]
    if not scores or not largest.sparse:
        return ""
    names = (largest.dense.name, largest.sparse[-1].name)
    tasks, shots = _distinct(scores, "task"), _distinct(scores, "shots")
    averages = {name: [_accuracies(scores, name, tasks, k) for k in shots] for name in names}
    found = {name: "/".join(f"{np.mean(list(by_seed.values())):.1%}" for by_seed in averages[name]) for name in names}
    changes = [_change(own, dense) for dense, own in zip(*averages.values(), strict=True)]
    return (
        f"Questions: the average accuracy over {' and '.join(tasks)}, {', '.join(map(_name_of_shots, shots))}, is "
        f"{found[names[0]]} of {names[0]} and {found[names[1]]} of {names[1]}: differences of "
        f"{', '.join(with_interval(change, '+.1%') for change in changes)}."
    )


def _few_shot_sections(sizes: Sequence[Size], scores: Sequence[Score]) -> list[str]:
    """Writes a table for each task."""
    if not scores:
        return []
    sections = ["## Few-shot results"]
    shots = _distinct(scores, "shots")
    for task in _distinct(scores, "task"):
        of_task = [score for score in scores if score["task"] == task]
        first = of_task[0]
        chance = "multiple choice, chance " + f"{first['chance']:.0%}" if first["chance"] else "cloze, chance next to 0"
        room = [
            f"{np.mean([score['demonstrations'] for score in of_task if score['shots'] == k]):.1f} of {k}"
            for k in shots
            if k
        ]
        lines = [["model", *(title for k in shots for title in (_name_of_shots(k), "Δ"))]]
        for size in sizes:
            dense = [_accuracies(scores, size.dense.name, [task], k) for k in shots]
            for summary in size.summaries:
                own = [_accuracies(scores, summary.name, [task], k) for k in shots]
                lines.append([summary.name, *_few_shot_cells(own, dense if summary is not size.dense else None)])
        sections += [
            f"### {task}",
            f"Accuracy on {first['examples']} questions ({chance}), of validation documents, the same for all models"
            + (f"; of the solved examples there was room for {' and '.join(room)} on average." if room else "."),
            markdown_rows(lines),
        ]
    return [
        *sections,
        "Means over the seeds of training with their 95% intervals (Student's t); Δ is the difference to the dense "
        "model of the size, paired by seed. With one seed there are no intervals.",
    ]


def _few_shot_cells(own: Sequence[Mapping[int, float]], dense: Sequence[Mapping[int, float]] | None) -> list[str]:
    """Writes accuracy and difference for each number of shots."""
    cells = []
    for place, by_seed in enumerate(own):
        accuracy = with_interval(estimate(list(by_seed.values())), ".1%") if by_seed else NOTHING
        cells += [accuracy, with_interval(_change(by_seed, dense[place]) if dense else None, "+.1%")]
    return cells


def _accuracies(scores: Sequence[Score], name: str, tasks: Sequence[str], shots: int) -> dict[int, float]:
    """Returns one model's accuracy by seed, mean over the tasks."""
    found: dict[int, list[float]] = {}
    for score in scores:
        if score["name"] == name and score["task"] in tasks and score["shots"] == shots:
            found.setdefault(score["seed"], []).append(score["accuracy"])
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _change(own: Mapping[int, float], dense: Mapping[int, float]) -> Estimate | None:
    """Compares the seeds that both have; None if there are none."""
    seeds = sorted(own.keys() & dense.keys())
    return paired_difference([own[seed] for seed in seeds], [dense[seed] for seed in seeds]) if seeds else None


def _name_of_shots(shots: int) -> str:
    return SHOTS.get(shots, f"few-shot ({shots})")


def _distinct(scores: Sequence[Score], field: str) -> list:
    return list(dict.fromkeys(score[field] for score in scores))


def _speed_ups(sizes: Sequence[Size], energy: Sequence[Meter]) -> list[Column]:
    size_of = {summary.name: size for size in sizes for summary in size.summaries}

    def of_cost(title: str, cost: str) -> Column:
        return title, lambda s: speed_up_cell(s.speed_up.get(cost), with_interval)

    def of_energy(meter: Meter) -> Column:
        title = f"in energy ({meter.name})"
        return title, lambda s: speed_up_cell(energy_speed_up(size_of[s.name], s.name, meter), with_interval)

    return [
        ("model", lambda s: s.name),
        of_cost("speed-up in tokens", "step"),
        of_cost("in training FLOPs", "flops"),
        of_cost("in seconds", "seconds"),
        *map(of_energy, energy),
        *ROUTING,
    ]


def _costs(sizes: Sequence[Size], energy: Sequence[Meter]) -> list[Column]:
    runs: dict[str, list[Row]] = {}
    for size in sizes:
        for row in size.rows:
            runs.setdefault(row["name"], []).append(row)

    def of_run(joules: Callable[[Sequence[Row]], float]) -> Callable[[ModelSummary], str]:
        return lambda s: f"{joules(runs[s.name]) / 1000:,.2f}"

    return [
        ("model", lambda s: s.name),
        ("step (ms)", lambda s: f"{1000 * float(np.mean([step_seconds(row) for row in runs[s.name]])):.1f}"),
        ("relative step time", lambda s: with_interval(s.step_time, ".2f")),
        *((f"training (kJ, {m.name})", of_run(lambda rows, m=m: energy_of_training(rows, m))) for m in energy),
    ]


def _energy_note(energy: Sequence[Meter]) -> str:
    stated, *counted = (meter.name for meter in energy)
    note = (
        f"Energy is that of a training step times the number of steps. {stated[0].upper() + stated[1:]}: one power for "
        "all models times the seconds of their steps, so this energy has the ratios of seconds."
    )
    if counted:
        return f"{note} {counted[0]}: counted by the machine, with everything else that ran on it."
    return f"{note} No energy was counted, because the machine has no counter that could be read."
