"""Runs side by side in processes of their own, each on its share of the cores.

A small model gains little from a second core, so two runs on a core each end sooner than one after the other on both.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import jax

from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import train
from moe_jax.training.result import RunResult

Result = TypeVar("Result")

# Of this process: steps that runs share, and the line of the terminal that its progress bar takes.
_compiled: dict[str, Any] = {}
_line = 0


def train_here(config: TrainConfig, workdir: Path) -> RunResult:
    """`train`, which compiles once in a process what its runs share."""
    return train(config, workdir, compiled=_compiled, line=_line)


def default_jobs() -> int:
    """One for each core, 4 at most; one on an accelerator, which a single run fills."""
    return min(4, len(_usable_cores())) if jax.default_backend() == "cpu" else 1


def _usable_cores() -> list[int]:
    """Numbers of the cores that this process may use, increasing."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def side_by_side(
    tasks: Sequence[Any],
    work: Callable[[Any], Result],
    ready: Callable[[Any, set[int]], bool],
    jobs: int,
) -> Iterator[Result]:
    """What `work` gives for each of the tasks, as they end; they begin in their order, but for those that must wait.

    Args:
      tasks: what to do.
      work: does a task, in another process, to which both are sent.
      ready: whether a task can begin, by the numbers of the tasks that have ended.
      jobs: how many at a time.

    Raises:
      ValueError: no task is left that can begin.
    """
    cores, context = _usable_cores(), multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(jobs):
        places.put((place, cores[place::jobs] or cores))
    waiting, ended, running = list(range(len(tasks))), set(), {}
    with ProcessPoolExecutor(jobs, context, _settle, (places,)) as executor:
        while waiting or running:
            for number in [number for number in waiting if ready(tasks[number], ended)][: jobs - len(running)]:
                waiting.remove(number)
                running[executor.submit(work, tasks[number])] = number
            if not running:
                raise ValueError(f"tasks {waiting} wait for others that are not among them")
            done: set[Future] = wait(running, return_when=FIRST_COMPLETED).done
            for future in done:
                ended.add(running.pop(future))
                yield future.result()


def _settle(places: Any) -> None:
    """Takes a place among the workers: before JAX starts its threads, which stay on these cores."""
    global _line
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _line, cores = places.get()
    keep_freed_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on in a folder in which the same command, given again, trains too."""
    multiprocessing.parent_process().join()
    os._exit(1)
