"""Studies from the command line to the report: training, questions, costs of steps, and what they came to."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_jax.configuration import ConfigError, require_name
from moe_jax.reports.tables import format_table
from moe_jax.results.rows import Row, read_study
from moe_jax.study.command_line import given, output_folder, study_parser
from moe_jax.study.few_shot_scores import require_questions, score_runs
from moe_jax.study.plan import Entry, Plan, make_plan, restore_rows, write_table
from moe_jax.study.router_times import time_routers
from moe_jax.study.step_costs import measure_step_costs
from moe_jax.study.study import Finished, Preset, Study
from moe_jax.study.sweep import run_name, run_sweep
from moe_jax.study.workers import default_jobs, train_here
from moe_jax.training.result import DivergenceError


def run_study(study: Study, description: str, arguments: Sequence[str] | None = None) -> int:
    """Runs `python -m experiments.NAME`, NAME the study's name, and returns the exit status.

    Its results, runs and report are in one folder.

    Args:
      study: what to run.
      description: the beginning of --help.
      arguments: of the command line; None reads the process's.
    """
    return run_studies(study.name, description, [study], arguments)


def run_studies(name: str, description: str, studies: Sequence[Study], arguments: Sequence[str] | None = None) -> int:
    """Runs `python -m experiments.NAME STUDY...` and returns the exit status.

    Runs lie in one folder, because studies share them; each study has a folder of its own for its results and report.

    Args:
      name: of the command.
      description: the beginning of --help.
      studies: all that the command knows.
      arguments: of the command line; None reads the process's.
    """
    options = study_parser(name, description, studies).parse_args(arguments)
    try:
        _run(name, studies, options)
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(name: str, studies: Sequence[Study], options: argparse.Namespace) -> None:
    alone = len(studies) == 1
    by_name = {study.name: study for study in studies}
    asked = list(by_name) if alone else options.study or list(by_name)
    for study in asked:
        require_name(study, by_name, "STUDY")
    output = output_folder(name, options)
    plan = make_plan(studies, options.preset, asked, options.seeds, _models(studies[0], options), options.set)
    folders = {study: output if alone else output / study for study in asked}
    _check_questions(plan, by_name, options.preset, folders, output / "runs")

    def show(rows: list[Row]) -> None:
        for study, table in plan.tables.items():
            if alone:
                _show_groups(rows, table)
            else:
                write_table(rows, table, folders[study] / "results.jsonl")
        print(f"{len(rows)} of {len(plan.runs)} runs", flush=True)

    if not alone:
        everything = make_plan(studies, options.preset, list(by_name), options.seeds, (), options.set)
        restore_rows(everything, output)
    rows = run_sweep(
        plan.runs,
        output / "results.jsonl",
        output / "runs",
        train_here,
        show,
        may_diverge=studies[0].may_diverge,
        jobs=options.jobs or studies[0].jobs or default_jobs(),
    )
    for study, table in plan.tables.items():
        if not alone:
            write_table(rows, table, folders[study] / "results.jsonl")
        arguments = given(options, by_name[study].chooser)
        command = ["python", "-m", f"experiments.{name}", *([] if alone else [study]), *arguments]
        finished = _measure(by_name[study], table, folders[study], output / "runs", options, command)
        print(f"\n{by_name[study].report(finished)}", flush=True)


def _models(study: Study, options: argparse.Namespace) -> list[str]:
    """Returns the names that --models or the study's own option chooses."""
    if study.chooser is None or options.chooser is None:
        return options.models
    return [*options.models, *study.with_baselines(options.chooser.split(","), f"--{study.chooser}")]


def _check_questions(
    plan: Plan, studies: dict[str, Study], preset: str, folders: dict[str, Path], workdir: Path
) -> None:
    """Makes the questions before any run is trained for them; raises ConfigError if they cannot be made."""
    for study, table in plan.tables.items():
        questions = studies[study].presets[preset].questions
        if questions is not None:
            require_questions([entry.run for entry in table], workdir, folders[study] / "scores.jsonl", questions)


def _show_groups(rows: Sequence[Row], table: Sequence[Entry]) -> None:
    """Prints a table for each group whose baseline is done: side by side with others, it need not end first."""
    for group, own in _groups(rows, table).items():
        models = {entry.model.key: entry.model for entry in table if entry.model.group == group}
        baseline = next(models[model.baseline].name for model in models.values())
        if any(row["name"] == baseline for row in own):
            print("\n" + f"{group}\n" * bool(group) + format_table(own, baseline) + "\n")


def _groups(rows: Sequence[Row], table: Sequence[Entry]) -> dict[str, list[Row]]:
    """Returns the rows of a study's runs by the group of their models, in the table's order."""
    by_run = {row.get("run"): row for row in rows}
    groups: dict[str, list[Row]] = {}
    for entry in table:
        row = by_run.get(run_name(entry.run))
        if row is not None:
            groups.setdefault(entry.model.group, []).append(row)
    return groups


def _measure(
    study: Study, table: Sequence[Entry], folder: Path, workdir: Path, options: argparse.Namespace, command: list[str]
) -> Finished:
    """Asks, times and reads what the study's report needs besides training."""
    preset: Preset = study.presets[options.preset]
    runs, named = [entry.run for entry in table], [entry.named for entry in table]
    scores, router_times, counter = [], {}, None
    if preset.questions is not None:
        scores = score_runs(runs, workdir, folder / "scores.jsonl", preset.questions)
    if study.times_steps:
        path = folder / "step_costs.json"
        measure_step_costs(named, path)
        counter = json.loads(path.read_text())["counter"]
    if study.times_routers:
        router_times = time_routers([config for config in named if config.seed == 0], folder / "router_times.json")
    watts = preset.watts
    if watts is not None:
        watts = options.watts or watts
        command = [*command, "--watts", f"{watts:g}"]
    groups = _groups(read_study(folder), table)
    return Finished(groups, scores, router_times, counter, watts, folder, shlex.join(command))
