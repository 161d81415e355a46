"""Orderly end of a run that is asked to stop: SIGTERM, which clusters send before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM
"""Status of a process that ended so, as shells report it."""


class TerminatedError(Exception):
    """Raised when a run has been asked to stop, after it has saved a checkpoint.

    Attributes:
      step: step of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on from there")
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[int]]:
        # An exception would be made again of its message.
        return TerminatedError, (self.step,)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that says whether to stop after it; all processes of a run stop after the same.

    It must be called before the first step, too, with the number of steps that are done.

    Only a process's main thread can watch for signals; elsewhere the answer is always no.
    """
    if jax.process_count() > 1:
        # jax's own notifier watches for SIGTERM, and the processes agree on a step.
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
