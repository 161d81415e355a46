"""A run's files: its identity, its metrics and its clock, each line of them tied to a step.

`metrics.jsonl` holds only what the configuration determines, so that a resumed run's equals an undisturbed one's to the
bit; seconds are apart, in `timing.jsonl`.
"""

import json
import os
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError, to_dict
from moe_jax.runtime.files import read_json_lines, write_whole
from moe_jax.training.config import TrainConfig


def claim_workdir(workdir: Path, identity: dict[str, Any]) -> None:
    """Makes `workdir` this run's, or checks that it already is.

    Raises:
      ConfigError: it is another run's, a file, or cannot be made; or it holds metrics or checkpoints of no known run.
    """
    path = workdir / "run.json"
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir is {str(workdir)!r}, a file; accepted: a directory, there or to be made")
    if path.exists():
        other = json.loads(path.read_text())
        other["config"] = _with_new_fields(other["config"], identity["config"])
        for key, ours, theirs in _differences(identity, other):
            raise ConfigError(
                f"workdir is {str(workdir)!r}, of a run with {key}={theirs!r} where this one has {ours!r}; "
                "accepted: an empty directory, or one of the same run to resume it"
            )
        return
    for name in ("metrics.jsonl", "timing.jsonl", "checkpoints"):
        if (workdir / name).exists():
            raise ConfigError(
                f"workdir is {str(workdir)!r}, which has {name} but no run.json to say of which run; "
                "accepted: an empty directory, or one of the same run to resume it"
            )
    try:
        write_whole(path, json.dumps(identity, indent=2) + "\n")
    except OSError as error:
        accepted = "accepted: a directory, there or to be made, that can be written to"
        raise ConfigError(f"workdir is {str(workdir)!r}: {error.strerror}; {accepted}") from error


class StepLog:
    """A file of JSON lines, each with its `step`, that can be taken back to an earlier step.

    Args:
      path: the file.
      step: lines of later steps, and a last line that was cut off, are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_json_lines(path) if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def append(self, line: dict[str, Any]) -> None:
        """Hands a line to the operating system, whole."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Puts all lines on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Puts all lines on disk, and no more."""
        self.flush()
        self._file.close()


class NoLog:
    """What a process that does not write has in the place of its logs."""

    def append(self, line: dict[str, Any]) -> None: ...

    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _with_new_fields(stored: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with the fields that it predates, at their defaults."""
    try:
        complete = to_dict(TrainConfig.from_dict(stored))
    except ConfigError:
        return stored
    return {name: value for name, value in complete.items() if name in ours}


def _differences(ours: Any, theirs: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            difference
            for key in keys
            for difference in _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if ours == theirs else [(path, ours, theirs)]
