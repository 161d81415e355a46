"""What tests send to other processes."""

import functools
import os
import time
from pathlib import Path
from typing import NamedTuple

from moe_jax.study.workers import side_by_side
from moe_jax.training.config import TrainConfig
from moe_jax.training.result import DivergenceError, RunResult


class Place(NamedTuple):
    """Where and when a task was done: its process, the cores that it had, and from when to when."""

    task: int
    process: int
    cores: frozenset[int]
    began: float
    ended: float


def meet(task: int, folder: Path, processes: int) -> Place:
    """Waits until so many processes have begun a task."""
    began = time.time()
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < processes:
        time.sleep(0.01)
    return Place(task, os.getpid(), frozenset(os.sched_getaffinity(0)), began, time.time())


def hold(folder: Path) -> None:
    """Has two workers wait for one another and for a third that never comes."""
    list(side_by_side(range(2), functools.partial(meet, folder=folder, processes=3), lambda task, ended: True, 2))


def fail(task: int) -> None:
    raise ArithmeticError(f"task {task}")


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
