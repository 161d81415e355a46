"""A sweep: a list of configurations to train, and the table of results it fills."""

import datetime
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.configuration import differences, to_dict
from moe_jax.results.rows import Row, append_row, read_rows
from moe_jax.study import provenance
from moe_jax.study.workers import side_by_side
from moe_jax.training.config import TrainConfig
from moe_jax.training.result import DivergenceError, RunResult
from moe_jax.training.trained import is_finished

Train = Callable[[TrainConfig, Path], RunResult]


def run_sweep(
    configs: Sequence[TrainConfig],
    results: Path,
    workdir: Path,
    train: Train,
    on_row: Callable[[list[Row]], None] = lambda rows: None,
    may_diverge: bool = False,
    jobs: int = 1,
) -> list[Row]:
    """Trains what is not yet in `results`, one seed of every model before the next seed.

    A run is known by what differs from the defaults in its configuration (see `digest`). A row is appended when its run
    ended, so a sweep that is killed and started again trains only what is missing, and the run it was killed in goes on
    from that run's last checkpoint. A run that has its row, and whose folder is gone or not finished, is trained if one
    that is missing starts from it or learns from it.

    Args:
      configs: the runs, in the order that the models are to be trained within a seed.
      results: the table, `results.jsonl`; rows of other runs in it stay and are not returned.
      workdir: gets one folder of checkpoints and logs per run.
      train: trains one configuration in a folder, going on from the checkpoint it finds there.
      on_row: called with this sweep's rows so far, after each run that is trained.
      may_diverge: whether a run that diverges is a result, a row with `diverged` and the curve up to there, where it
        otherwise ends the sweep.
      jobs: how many runs at a time, in processes of their own if more than one; a run waits for those that it starts
        from or learns from.

    Returns:
      The rows of `configs`, seed by seed.

    Raises:
      DivergenceError: a run diverged, and `may_diverge` does not say that it may.
    """
    configs = sorted(configs, key=lambda config: config.seed)
    rows = {row["run"]: row for row in read_rows(results) if "run" in row}

    def done() -> list[Row]:
        return [rows[run] for run in map(run_name, configs) if run in rows]

    tasks = _to_train([_Task(config, workdir, train, may_diverge) for config in configs], rows.keys())
    for row in map(_run, tasks) if jobs == 1 else side_by_side(tasks, _run, _can_begin(tasks), jobs):
        if row["run"] not in rows:
            append_row(results, row)
            rows[row["run"]] = row
        on_row(done())
    return done()


def digest(config: TrainConfig) -> str:
    """Returns a digest of what differs from the defaults in a configuration, the seed aside.

    A field that is added later, with the old behaviour as its default, leaves it as it is. So a default never changes.
    """
    fields = {name: value for name, value in differences(config).items() if name != "seed"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def run_name(config: TrainConfig) -> str:
    """Returns what a run is known by, for example `switch-16-seed0-1a2b3c4d`; different configurations differ in it."""
    return f"{config.name}-seed{config.seed}-{digest(config)[:8]}"


def run_directory(config: TrainConfig, workdir: Path) -> Path:
    """Returns the folder of one run within `workdir`."""
    return workdir / run_name(config)


class _Task(NamedTuple):
    """A run of a sweep."""

    config: TrainConfig
    workdir: Path
    train: Train
    may_diverge: bool

    @property
    def directory(self) -> Path:
        return run_directory(self.config, self.workdir)

    @property
    def needs(self) -> set[str]:
        """Folders of the runs that it starts from or learns from."""
        parts = self.config.start, self.config.distillation
        return {Path(part.run).name for part in parts if part is not None}


def _to_train(tasks: Sequence[_Task], finished: Collection[str]) -> list[_Task]:
    """Those that have no row, and those that they need of which the folder is gone or not finished."""
    missing = [run_name(task.config) not in finished for task in tasks]
    needed: set[str] = set()
    # What a run needs comes before it.
    for i, task in reversed(list(enumerate(tasks))):
        missing[i] |= task.directory.name in needed and not is_finished(task.config, task.directory)
        if missing[i]:
            needed |= task.needs
    return [task for task, absent in zip(tasks, missing, strict=True) if absent]


def _can_begin(tasks: Sequence[_Task]) -> Callable[[_Task, set[int]], bool]:
    """Whether a task needs none of the others that have not ended yet."""

    def can_begin(task: _Task, ended: set[int]) -> bool:
        return task.needs.isdisjoint(other.directory.name for i, other in enumerate(tasks) if i not in ended)

    return can_begin


def _run(task: _Task) -> Row:
    """Trains and makes a row, with the revision of the code as it was when training started."""
    config = task.config
    origin = {"git_revision": provenance.git_revision(), "host": provenance.host(), "versions": provenance.versions()}
    more = {}
    try:
        result = task.train(config, task.directory)
    except DivergenceError as error:
        if not task.may_diverge:
            raise
        result, more = error.result, {"diverged": True}
    if result.curve and "scores" in result.curve[-1]:
        more["scores"] = result.curve[-1]["scores"]
    parameters = count_parameters(config.model)
    return {
        "name": config.name,
        "seed": config.seed,
        "run": run_name(config),
        "digest": digest(config),
        "config": to_dict(config),
        "corpus": {"name": result.corpus_name, "digest": result.corpus_digest},
        **origin,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "parameters": {"total": parameters.total, "active": parameters.active, "network": parameters.network},
        "flops_per_token": round(flops_per_token(config.model, *config.lengths).training),
        "curve": list(result.curve),
        **more,
    }
