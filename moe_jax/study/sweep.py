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
from moe_jax.study.leases import PATIENCE_SECONDS, Leases
from moe_jax.study.workers import Workers
from moe_jax.training.config import TrainConfig
from moe_jax.training.result import DivergenceError, RunResult
from moe_jax.training.trained import is_finished

Train = Callable[[TrainConfig, Path], RunResult]

POLL_SECONDS = 2.0
"""A worker that waits for others looks for their results that often."""


def run_sweep(
    configs: Sequence[TrainConfig],
    results: Path,
    workdir: Path,
    train: Train,
    on_row: Callable[[list[Row]], None] = lambda rows: None,
    may_diverge: bool = False,
    jobs: int = 1,
    patience: float = PATIENCE_SECONDS,
) -> list[Row]:
    """Trains what is not yet in `results`, one seed of every model before the next seed.

    A run is known by what differs from the defaults in its configuration (see `digest`). A row is appended when its run
    ended, so a sweep that is killed and started again trains only what is missing, and the run it was killed in goes on
    from that run's last checkpoint. A run that has its row, and whose folder is gone or not finished, is trained if one
    that is missing starts from it or learns from it.

    The same sweep may run in several processes, on machines that share the folder: each run is trained by one of them
    (`moe_jax.study.leases`), a dead one's run is taken up again, and each process returns when all rows are there.

    Args:
      configs: the runs, in the order that the models are to be trained within a seed.
      results: the table, `results.jsonl`; rows of other runs in it stay and are not returned.
      workdir: gets one folder of checkpoints and logs per run.
      train: trains one configuration in a folder, going on from the checkpoint it finds there.
      on_row: called with this sweep's rows so far, when there are more of them.
      may_diverge: whether a run that diverges is a result, a row with `diverged` and the curve up to there; it
        otherwise ends the sweep.
      jobs: runs at a time, in processes of their own if more than one; a run waits for those that it starts from or
        learns from.
      patience: seconds without a heartbeat after which a worker on another machine counts as dead.

    Returns:
      The rows of `configs`, seed by seed.

    Raises:
      DivergenceError: a run diverged, and `may_diverge` does not say that it may.
      ValueError: runs need each other in a circle.
    """
    tasks = [_Task(config, workdir, train, may_diverge) for config in sorted(configs, key=lambda config: config.seed)]
    shown = len(_done(tasks, results))

    def show() -> None:
        nonlocal shown
        rows = _done(tasks, results)
        if len(rows) > shown:
            shown = len(rows)
            on_row(rows)

    with Leases(workdir, patience) as leases, Workers(_run, jobs) as workers:
        while missing := _to_train(tasks, _rows(results)):
            _begin(missing, tasks, results, leases, workers)
            for task, row in workers.take(min(POLL_SECONDS, patience / 4)):
                if task.name not in _rows(results):
                    append_row(results, row)
                leases.release(task.name)
                show()
            # Other processes' rows, too.
            show()
    return _done(tasks, results)


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
    def name(self) -> str:
        return run_name(self.config)

    @property
    def directory(self) -> Path:
        return self.workdir / self.name

    @property
    def needs(self) -> set[str]:
        """The names of the runs that it starts from or learns from."""
        parts = self.config.start, self.config.distillation
        return {Path(part.run).name for part in parts if part is not None}


def _rows(results: Path) -> dict[str, Row]:
    """Returns the rows of a table by the name of their run."""
    return {row["run"]: row for row in read_rows(results) if "run" in row}


def _done(tasks: Sequence[_Task], results: Path) -> list[Row]:
    rows = _rows(results)
    return [rows[task.name] for task in tasks if task.name in rows]


def _begin(
    missing: Sequence[_Task], tasks: Sequence[_Task], results: Path, leases: Leases, workers: Workers[_Task, Row]
) -> None:
    """Begins as many missing tasks as there are free jobs, of those that need no other and that no one else does.

    Raises:
      ValueError: every missing task needs another one.
    """
    names = {task.name for task in missing}
    ready = [task for task in missing if task.needs.isdisjoint(names)]
    if not ready:
        raise ValueError(f"runs {sorted(names)} start from or learn from each other in a circle")
    running = {task.name for task in workers.running}
    for task in ready:
        if len(workers.running) == workers.jobs:
            return
        if task.name in running or not leases.acquire(task.name):
            continue
        # Another worker may have ended it between the reading of the table and the lease.
        if task in _to_train(tasks, _rows(results)):
            workers.submit(task)
        else:
            leases.release(task.name)


def _to_train(tasks: Sequence[_Task], finished: Collection[str]) -> list[_Task]:
    """Returns those that have no row, and those that they need whose folder is gone or not finished."""
    missing = [task.name not in finished for task in tasks]
    needed: set[str] = set()
    # What a run needs comes before it.
    for i, task in reversed(list(enumerate(tasks))):
        missing[i] |= task.name in needed and not is_finished(task.config, task.directory)
        if missing[i]:
            needed |= task.needs
    return [task for task, absent in zip(tasks, missing, strict=True) if absent]


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
        "run": task.name,
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
