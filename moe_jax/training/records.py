"""Files of a run: its identity, its metrics and its clock; each line has a step.

`metrics.jsonl` holds only numbers that the configuration determines, so that a resumed run has the same file, bit for
bit, as a run never stopped. Seconds are apart, in `timing.jsonl`.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError, to_dict, unequal_fields
from moe_jax.runtime.files import GrowingFile, read_json_lines, write_whole
from moe_jax.training.config import TrainConfig

CHANGEABLE = ("config.log_every", "config.checkpoint_every")
"""Fields that may differ when a run goes on. `metrics.jsonl` then has the lines of each session's own interval."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of file systems without locks, on which a run is not guarded."""
ENDLESS = ("inverse_sqrt", "constant")
"""Schedules that do not know the number of steps, which may grow with them if there is no decay at the end."""


@contextlib.contextmanager
def claimed(workdir: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Claims `workdir` for this run and this process: writes run.json, and holds a lock that ends with the process.

    Raises:
      ConfigError: `workdir` belongs to another run, another process trains in it, it is a file, cannot be made, or
        holds metrics or checkpoints without a run.json. Nothing has been written then.
    """
    _require_own(workdir, identity)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "run.lock").open("a")
    except OSError as error:
        accepted = "accepted: a directory that can be written to, which is made if need be"
        raise ConfigError(f"workdir is {str(workdir)!r}: {error.strerror}; {accepted}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            accepted = "accepted: another directory, or this one when that process has ended"
            message = f"workdir is {str(workdir)!r}, where another process trains a run; {accepted}"
            raise ConfigError(message) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        # Another process may have come first since.
        _require_own(workdir, identity)
        text = json.dumps(identity, indent=2) + "\n"
        if not (workdir / "run.json").exists() or (workdir / "run.json").read_text() != text:
            write_whole(workdir / "run.json", text)
        yield


def _require_own(workdir: Path, identity: dict[str, Any]) -> None:
    """Raises ConfigError unless `workdir` is this run's, empty or missing."""
    # `Path` would raise an error for a name that is too long; making the directory says so in one line.
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise ConfigError(f"workdir is {str(workdir)!r}, a file; accepted: a directory, which is made if need be")
    accepted = "accepted: an empty directory, or the directory of the same run to resume it"
    if os.path.exists(workdir / "run.json"):
        other = json.loads((workdir / "run.json").read_text())
        other["config"] = _with_new_fields(other["config"], identity["config"])
        for key, ours, theirs in unequal_fields(identity, other):
            optimizer = identity["config"]["optimizer"]
            endless = optimizer["schedule"] in ENDLESS and not optimizer["decay_share"]
            if key in CHANGEABLE or (key == "config.steps" and ours > theirs and endless):
                continue
            raise ConfigError(
                f"workdir is {str(workdir)!r}, which holds a run with {key}={theirs!r}, but this run has {ours!r}; "
                f"{accepted}"
            )
        return
    for name in ("metrics.jsonl", "timing.jsonl", "checkpoints"):
        if os.path.exists(workdir / name):
            raise ConfigError(
                f"workdir is {str(workdir)!r}, which has {name} but no run.json, so its run is unknown; {accepted}"
            )


class StepLog:
    """A file of JSON lines, each with its `step`, that can be rewound to an earlier step.

    Args:
      path: the file.
      step: the last step to keep; lines of later steps, and an unfinished last line, are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_json_lines(path) if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = GrowingFile(path)

    def append(self, line: dict[str, Any]) -> None:
        """Writes one line; it survives the end of the process, though not yet of the machine."""
        self.file.write(json.dumps(line).encode() + b"\n")

    def flush(self) -> None:
        """Waits until all lines are on disk."""
        self.file.flush()

    def close(self) -> None:
        """Waits until all lines are on disk, and closes the file."""
        self.file.close()


class NoLog:
    """A log that drops everything, for processes that do not write."""

    def append(self, line: dict[str, Any]) -> None: ...

    def add(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _with_new_fields(stored: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with the fields that it predates, at their defaults."""
    try:
        complete = to_dict(TrainConfig.from_dict(stored))
    except ConfigError:
        return stored
    return {name: value for name, value in complete.items() if name in ours}
