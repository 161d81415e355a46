"""Studies from the command line to the report: training, questions, costs of steps, and what they came to."""

import argparse
import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_jax.configuration import ConfigError, require_name
from moe_jax.reports.tables import format_table
from moe_jax.results.rows import ARM, Row, read_study
from moe_jax.runtime.files import WriteError
from moe_jax.study.command_line import given, output_folder, study_parser
from moe_jax.study.few_shot_scores import require_questions, score_runs
from moe_jax.study.leases import Leases
from moe_jax.study.router_times import time_routers
from moe_jax.study.selection import Entry, Selection, restore_rows, select_runs, write_table
from moe_jax.study.step_costs import measure_step_costs
from moe_jax.study.study import Finished, Preset, Study
from moe_jax.study.sweep import run_name, run_sweep
from moe_jax.study.workers import default_jobs, train_here
from moe_jax.training.result import DivergenceError
from moe_jax.training.termination import EXIT_STATUS, TerminatedError


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
    The same command may run in several processes, on machines that share the folder of --output: they share out the
    runs, and one of them writes the reports.

    Args:
      name: of the command.
      description: the beginning of --help.
      studies: all that the command knows; they agree in the names of their presets, in `jobs`, `may_diverge` and
        `chooser`.
      arguments: of the command line; None reads the process's.
    """
    options = study_parser(name, description, studies).parse_args(arguments)
    try:
        _Command(name, studies, options).run()
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (DivergenceError, WriteError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except TerminatedError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_STATUS
    return 0


@dataclasses.dataclass(frozen=True)
class _Command:
    """One command with its options.

    Attributes:
      name: the module's in `experiments`.
      studies: all that it knows.
      options: of `study_parser`.
    """

    name: str
    studies: Sequence[Study]
    options: argparse.Namespace

    @property
    def alone(self) -> bool:
        """True for a command with one study, whose table is that of the runs."""
        return len(self.studies) == 1

    @property
    def output(self) -> Path:
        return output_folder(self.name, self.options)

    @property
    def workdir(self) -> Path:
        return self.output / "runs"

    @functools.cached_property
    def asked(self) -> dict[str, Study]:
        """The studies to run, by name."""
        by_name = {study.name: study for study in self.studies}
        names = list(by_name) if self.alone else self.options.study or list(by_name)
        for name in names:
            require_name(name, by_name, "STUDY")
        return {name: by_name[name] for name in names}

    @functools.cached_property
    def selection(self) -> Selection:
        options, first = self.options, self.studies[0]
        models = options.models
        if first.chooser is not None and options.chooser is not None:
            models = [*models, *first.with_baselines(options.chooser.split(","), f"--{first.chooser}")]
        return select_runs(self.studies, options.preset, list(self.asked), options.seeds, models, options.set)

    def folder(self, study: str) -> Path:
        """Returns the folder of a study's results and report."""
        return self.output if self.alone else self.output / study

    def preset(self, study: str) -> Preset:
        """Returns the scale at which a study runs."""
        return self.asked[study].presets[self.options.preset]

    def whole(self, study: str) -> list[Entry]:
        """Returns the rows of a study's table without arms, from which only speed-ups are read."""
        return [entry for entry in self.selection.tables[study] if ARM not in entry.model.name]

    def run(self) -> None:
        """Trains, measures and reports what is missing."""
        self._check_questions()
        if not self.alone:
            self._restore()
        first = self.studies[0]
        rows = run_sweep(
            self.selection.runs,
            self.output / "results.jsonl",
            self.workdir,
            train_here,
            self._show,
            may_diverge=first.may_diverge,
            jobs=self.options.jobs or first.jobs or default_jobs(),
        )
        self._write_tables(rows)
        with Leases(self.output) as leases:
            if not leases.acquire("report"):
                print("Another process writes the report.")
                return
            for study in self.asked:
                print(f"\n{self.asked[study].report(self._measure(study))}", flush=True)

    def _check_questions(self) -> None:
        """Makes the questions before any run is trained for them; raises ConfigError if they cannot be made."""
        for study in self.selection.tables:
            questions = self.preset(study).questions
            if questions is not None:
                path = self.folder(study) / "scores.jsonl"
                require_questions([entry.run for entry in self.whole(study)], self.workdir, path, questions)

    def _restore(self) -> None:
        """Restores the table of runs from the studies' tables, also of studies that are not asked for."""
        options = self.options
        names = [study.name for study in self.studies]
        everything = select_runs(self.studies, options.preset, names, options.seeds, (), options.set)
        with Leases(self.output) as leases:
            leases.wait_for("table")
            restore_rows(everything, self.output)

    def _show(self, rows: list[Row]) -> None:
        """Shows, or writes to the studies' tables, what is there so far."""
        if self.alone:
            (study,) = self.selection.tables
            _show_groups(rows, self.whole(study))
        self._write_tables(rows)
        print(f"{len(rows)} of {len(self.selection.runs)} runs", flush=True)

    def _write_tables(self, rows: Sequence[Row]) -> None:
        """Writes the tables of studies that share their runs."""
        if not self.alone:
            for study, table in self.selection.tables.items():
                write_table(rows, table, self.folder(study) / "results.jsonl")

    def _measure(self, name: str) -> Finished:
        """Asks, times and reads what a study's report needs besides training."""
        study, preset, folder = self.asked[name], self.preset(name), self.folder(name)
        table = self.whole(name)
        runs, named = [entry.run for entry in table], [entry.named for entry in table]
        scores, router_times, counter = [], {}, None
        if preset.questions is not None:
            scores = score_runs(runs, self.workdir, folder / "scores.jsonl", preset.questions)
        if study.times_steps:
            path = folder / "step_costs.json"
            measure_step_costs(named, path)
            counter = json.loads(path.read_text())["counter"]
        if study.times_routers:
            router_times = time_routers([config for config in named if config.seed == 0], folder / "router_times.json")
        command = ["python", "-m", f"experiments.{self.name}", *([] if self.alone else [name])]
        command += given(self.options, study.chooser)
        watts = preset.watts
        if watts is not None:
            watts = self.options.watts or watts
            command += ["--watts", f"{watts:g}"]
        groups = _groups(read_study(folder), table)
        return Finished(groups, scores, router_times, counter, watts, folder, shlex.join(command))


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
