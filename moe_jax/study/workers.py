"""Runs side by side in processes of their own, each on its share of the cores.

A small model gains little from a second core, so two runs on a core each end sooner than one after the other on both.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import jax

from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import train
from moe_jax.training.result import RunResult
from moe_jax.training.termination import TerminatedError, note_termination, noted_termination

Task = TypeVar("Task")
Result = TypeVar("Result")

STOPPED = (TerminatedError, BrokenProcessPool)
"""Errors of a task whose process was asked to stop; the second if the process had just been started."""

# Of this process: steps that runs share, and the line of the terminal that its progress bar takes.
_compiled: dict[str, Any] = {}
_line = 0


def train_here(config: TrainConfig, workdir: Path) -> RunResult:
    """Trains as `train` does; runs in one process that can share a compiled step compile it once."""
    return train(config, workdir, compiled=_compiled, line=_line)


def default_jobs() -> int:
    """Returns a job for each core, 4 at most; one on an accelerator, which a single run fills."""
    return min(4, len(_usable_cores())) if jax.default_backend() == "cpu" else 1


def _usable_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use, increasing."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Workers(Generic[Task, Result]):
    """Processes that do tasks; a context, at whose end they have ended.

    One job is done in this process, when it is submitted. SIGTERM is passed on to several, whose trainings save a
    checkpoint and end.

    Args:
      work: does a task; sent to another process with it if there are several jobs.
      jobs: tasks at a time.
    """

    def __init__(self, work: Callable[[Task], Result], jobs: int) -> None:
        self.work = work
        self.jobs = jobs
        self._executor: ProcessPoolExecutor | None = None
        self._running: dict[Future, Task] = {}
        self._context = contextlib.ExitStack()
        self._asks_to_stop: Callable[[], bool] = lambda: False

    def __enter__(self) -> "Workers[Task, Result]":
        if self.jobs > 1:
            cores, context = _usable_cores(), multiprocessing.get_context("spawn")
            places = context.Queue()
            for place in range(self.jobs):
                places.put((place, cores[place :: self.jobs] or cores))
            self._executor = ProcessPoolExecutor(self.jobs, context, _settle, (places,))
            if threading.current_thread() is threading.main_thread():
                self._asks_to_stop = self._context.enter_context(noted_termination())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        self._context.close()

    @property
    def running(self) -> list[Task]:
        """The tasks that were submitted and whose results were not yet taken."""
        return list(self._running.values())

    def submit(self, task: Task) -> None:
        """Begins a task; no more than `jobs` may be running."""
        if self._executor is not None:
            self._running[self._executor.submit(self.work, task)] = task
            return
        future: Future = Future()
        future.set_result(self.work(task))
        self._running[future] = task

    def take(self, seconds: float | None = None) -> list[tuple[Task, Result]]:
        """Waits until a task ends, or for so many seconds; returns those that ended, with their results.

        Raises:
          Exception: what a task raised.
          TerminatedError: this process was asked to stop (SIGTERM), and all tasks have ended.
        """
        if not self._running:
            time.sleep(seconds or 0)
        done = wait(self._running, seconds, FIRST_COMPLETED).done
        # A cluster may ask the processes themselves.
        if self._asks_to_stop() or any(isinstance(future.exception(), TerminatedError) for future in done):
            self._stop()
        return [(self._running.pop(future), future.result()) for future in done]

    def _stop(self) -> None:
        """Asks all processes to stop, waits until their tasks have ended, and raises TerminatedError."""
        for process in multiprocessing.active_children():
            process.terminate()
        errors = [future.exception() for future in wait(self._running).done]
        for error in errors:
            if error is not None and not isinstance(error, STOPPED):
                raise error
        saved = sum(not isinstance(error, BrokenProcessPool) for error in errors)
        raise TerminatedError(
            f"stopped by SIGTERM; {saved} runs have saved the step that they were at, and the same command goes on "
            "from there"
        )


def _settle(places: Any) -> None:
    """Takes a place among the workers: before JAX starts its threads, which stay on these cores."""
    global _line
    threading.Thread(target=_end_with_parent, daemon=True).start()
    note_termination()
    _line, cores = places.get()
    keep_freed_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _end_with_parent() -> None:
    """Ends this worker with its parent; it would otherwise go on in a folder in which the next command trains too."""
    multiprocessing.parent_process().join()
    os._exit(1)
