"""Orderly end of a run that is asked to stop: SIGTERM, which clusters send before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM
"""Status of a process that ended so, as shells report it."""

_asked = threading.Event()


class TerminatedError(Exception):
    """Raised when a run, or a study's runs, have been asked to stop, after they have saved a checkpoint."""


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
    with noted_termination() as asked:
        yield lambda step: asked()


@contextlib.contextmanager
def noted_termination() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM came, which does not end this process meanwhile; contexts may nest.

    For the main thread.
    """
    before = note_termination()
    try:
        yield _asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
        if before is not _note:
            _asked.clear()


def note_termination() -> Any:
    """Lets SIGTERM be noted, for `termination`, instead of ending this process; returns the handler before."""
    return signal.signal(signal.SIGTERM, _note)


def _note(*_: object) -> None:
    _asked.set()
