"""Selections: the runs that studies train, each once, and the rows of the studies' tables that they become."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_jax.configuration import differences, override, require_name, to_dict
from moe_jax.results.rows import ARM, Row, append_row, read_rows
from moe_jax.runtime.files import write_whole
from moe_jax.study.study import Model, Study
from moe_jax.study.sweep import digest, run_name
from moe_jax.training.config import TrainConfig

PARTS = ("start", "distillation")
"""Fields of a configuration that name another run."""


class Entry(NamedTuple):
    """A row of a study's table.

    Attributes:
      model: of the study.
      named: its configuration as the study has it; runs that it needs are named as in `Model.key`.
      run: the configuration that is trained, which may be named by another study; runs it needs are folders.
    """

    model: Model
    named: TrainConfig
    run: TrainConfig


class Selection(NamedTuple):
    """The runs of some studies and the rows that they become.

    Attributes:
      runs: each run once, those that others start from or learn from first.
      tables: the rows of each study's table, by its name.
    """

    runs: list[TrainConfig]
    tables: dict[str, list[Entry]]


def select_runs(
    studies: Sequence[Study],
    preset: str,
    asked: Sequence[str],
    seeds: int | None = None,
    only: Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> Selection:
    """Selects the runs of some of a family of studies.

    A run that several studies have is trained once, under the name that the first of all studies gives it, whichever
    are asked for.

    Args:
      studies: all studies of the family.
      preset: a name in `Study.presets`.
      asked: names of the studies to select from.
      seeds: runs of each model; None takes the preset's number.
      only: names of the models to select of each study; all if empty.
      assignments: `KEY=VALUE` for all configurations, those of runs that others need too.

    Raises:
      ConfigError: a model that no study has, or a model without the one that it is compared with; a wrong assignment.
    """
    by_name = {study.name: study for study in studies}
    _require_known(only, [by_name[name] for name in asked])
    shared = len(studies) > 1
    fields = {}
    for study in studies:
        scale = study.presets[preset]
        for model in study.models:
            values = override(scale.get_config(model.key).to_dict(), assignments)
            fields[model.key] = values
            fields |= {arm_of(model, divisor).key: _shortened(values, divisor) for divisor in scale.arms}
    first: dict[str, str] = {}
    for key, values in fields.items():
        first.setdefault(_identity(values, shared), key)
    runs: dict[tuple[str, int], TrainConfig] = {}

    def run(key: str, seed: int) -> TrainConfig:
        """Returns the run of a model, after selecting those that it needs."""
        key = first[_identity(fields[key], shared)]
        if (key, seed) not in runs:
            values = fields[key] | {"seed": seed}
            for part in PARTS:
                if values.get(part):
                    needed = run(_path(key, values[part]["run"]), seed)
                    values[part] = values[part] | {"run": run_name(needed)}
            runs[key, seed] = TrainConfig.from_dict(values)
        return runs[key, seed]

    tables = {}
    for name in asked:
        study = by_name[name]
        scale = study.presets[preset]
        chosen = study.chosen(scale, only)
        count = {model.key: seeds or scale.seeds_of.get(model.key, scale.seeds) for model in chosen}
        models = []
        for model in chosen:
            arms = [arm_of(model, divisor) for divisor in scale.arms]
            count |= dict.fromkeys((arm.key for arm in arms), count[model.key])
            models += [*arms, model]
        tables[name] = [
            Entry(model, TrainConfig.from_dict(fields[model.key] | {"seed": seed}), run(model.key, seed))
            for seed in range(max(count.values()))
            for model in models
            if seed < count[model.key]
        ]
    return Selection(list(runs.values()), tables)


def arm_of(model: Model, divisor: int) -> Model:
    """Returns a model of a study as it is when trained with so many times fewer steps."""
    key, name, baseline = (f"{one}{ARM}1of{divisor}" for one in (model.key, model.name, model.baseline))
    return Model(key, name, baseline, model.group)


def _shortened(values: Mapping[str, Any], divisor: int) -> dict[str, Any]:
    """Returns a configuration with so many times fewer steps, of warm-up and between evaluations, too."""
    config = TrainConfig.from_dict(values)
    warmup = max(1, config.optimizer.warmup_steps // divisor)
    return values | {
        "name": f"{config.name}{ARM}1of{divisor}",
        "steps": config.steps // divisor,
        "eval_every": max(1, config.eval_every // divisor),
        "optimizer": {**values.get("optimizer", {}), "warmup_steps": warmup},
    }


def _require_known(only: Sequence[str], studies: Sequence[Study]) -> None:
    names = sorted({model.name for study in studies for model in study.models})
    for name in only:
        require_name(name, names, "--models")


def _path(key: str, run: str) -> str:
    """Returns the key of the model that a configuration names by its path from the model `key`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(key), run))


def _identity(values: Mapping[str, Any], shared: bool) -> str:
    """Returns what models must have in common to be one run; their names may differ if runs are `shared`."""
    found = differences(TrainConfig.from_dict(values))
    kept = {field: value for field, value in found.items() if field != "name" or not shared}
    return json.dumps(kept, sort_keys=True)


def write_table(rows: Sequence[Row], table: Sequence[Entry], path: Path) -> None:
    """Writes a study's results: the rows of its runs, named as the study names them; runs not done are left out."""
    by_run = {row["run"]: row for row in rows}
    lines = []
    for entry in table:
        row = by_run.get(run_name(entry.run))
        if row is not None:
            named = {"name": entry.named.name, "digest": digest(entry.named), "config": to_dict(entry.named)}
            lines.append(json.dumps(row | named) + "\n")
    write_whole(path, "".join(lines))


def restore_rows(selection: Selection, output: Path) -> None:
    """Adds to the table of runs, `results.jsonl`, the rows that only the studies' tables have.

    It holds nothing that these do not, so a repository keeps only them.
    """
    path = output / "results.jsonl"
    known = {row.get("run") for row in read_rows(path)}
    for study, table in selection.tables.items():
        runs = {run_name(entry.run): entry.run for entry in table}
        for row in read_rows(output / study / "results.jsonl"):
            run = runs.get(row.get("run"))
            if run is not None and row["run"] not in known:
                known.add(row["run"])
                append_row(path, row | {"name": run.name, "digest": digest(run), "config": to_dict(run)})
