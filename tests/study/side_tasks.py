"""What tests send to other processes."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from moe_jax.results.rows import append_row
from moe_jax.study import leases
from moe_jax.study.sweep import run_sweep
from moe_jax.study.workers import Workers
from moe_jax.training.config import TrainConfig
from moe_jax.training.result import DivergenceError, RunResult
from moe_jax.training.termination import TerminatedError, termination


class Place(NamedTuple):
    """Where and when a task was done: its process, the cores that it had, and from when to when."""

    task: int
    process: int
    cores: frozenset[int]
    began: float
    ended: float


class Meeting(NamedTuple):
    """A task that ends when so many processes have begun one."""

    task: int
    folder: Path
    processes: int


def meet(meeting: Meeting) -> Place:
    """Waits until so many processes have begun a task."""
    began = time.time()
    (meeting.folder / str(os.getpid())).touch()
    while len(list(meeting.folder.iterdir())) < meeting.processes:
        time.sleep(0.01)
    return Place(meeting.task, os.getpid(), frozenset(os.sched_getaffinity(0)), began, time.time())


def hold(folder: Path) -> None:
    """Has two workers wait for one another and for a third that never comes."""
    with Workers(meet, 2) as workers:
        for task in range(2):
            workers.submit(Meeting(task, folder, 3))
        workers.take()


def go_on_until_asked(folder: Path) -> None:
    """Does as a training does: notes that it began, and what it saved when it was asked to stop."""
    with termination() as asks_to_stop:
        (folder / f"{os.getpid()}.began").touch()
        while not asks_to_stop(1):
            time.sleep(0.01)
        # What a signal of its own would end.
        time.sleep(0.5)
        (folder / f"{os.getpid()}.saved").touch()
        raise TerminatedError("stopped")


def have_two_go_on(folder: Path) -> None:
    """Has two workers go on until this process is asked to stop; says why they ended."""
    try:
        with Workers(go_on_until_asked, 2) as workers:
            for _ in range(2):
                workers.submit(folder)
            while True:
                workers.take(0.1)
    except TerminatedError as error:
        (folder / "said").write_text(str(error))


def fail(task: int) -> None:
    raise ArithmeticError(f"task {task}")


def append_many(path: Path, worker: int, rows: int) -> None:
    """Appends rows that are longer than what one write call moves at once."""
    for number in range(rows):
        append_row(path, {"worker": worker, "number": number, "text": "x" * 100_000})


def sweep_with(configs: list[TrainConfig], folder: Path, host: str, patience: float = 120.0) -> None:
    """Runs a sweep as a machine of this name does; a run called `hangs` never ends there, and others take a while."""
    leases.socket.gethostname = lambda: host

    def train(config: TrainConfig, workdir: Path) -> RunResult:
        with (folder / "began.txt").open("a") as log:
            log.write(f"{config.name} {host}\n")
        while config.name == "hangs":
            time.sleep(0.05)
        time.sleep(0.2)
        return fake_train(config, workdir)

    run_sweep(configs, folder / "results.jsonl", folder / "runs", train, patience=patience)


def fake_train(config: TrainConfig, workdir: Path) -> RunResult:
    """Writes its last checkpoint, for which it must find those that it needs; a run called `diverges` does."""
    for part in (config.start, config.distillation):
        assert part is None or list(workdir.parent.glob(f"{Path(part.run).name}/checkpoints/{config.steps}"))
    (workdir / "checkpoints" / str(config.steps)).mkdir(parents=True)
    point = {"step": config.steps, "tokens": 1, "seconds": 1.0, "validation_loss": 2.0, "bits_per_byte": 3.0}
    result = RunResult([point | {"routing": {}, "load": {}}], "python_source", "5eed", 20.0, 2.0)
    if config.name == "diverges":
        error = DivergenceError("total_loss is nan at step 3")
        error.result = result
        raise error
    return result
