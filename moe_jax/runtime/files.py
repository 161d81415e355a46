"""Files and folders that are written whole or not at all, and files of JSON lines."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""Numbers of the errors of a disk that is full, may not be written to, or fails."""


class StorageError(Exception):
    """Raised when files cannot be written: the disk is full, may not be written to, or fails."""


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Raises StorageError, which names the folder, for errors of its disk, whatever library they come from."""
    try:
        yield
    except Exception as error:
        reason = storage_reason(error)
        if reason is None:
            raise
        raise StorageError(f"files cannot be written to {str(folder)!r}: {reason}") from error


def storage_reason(error: Exception) -> str | None:
    """Returns the system's words for a disk's error, None for another error.

    Libraries raise types of their own, which quote the system.
    """
    words = [os.strerror(number) for number in STORAGE_ERRORS]
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror if error.errno in STORAGE_ERRORS else None
    return next((said for said in words if said in str(error)), None)


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` if the block succeeds.

    Processes that write the same `path` at the same time each write their own copy, and one copy is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        beside = Path(folder) / path.name
        yield beside
        try:
            beside.replace(path)
        except OSError:
            # A folder cannot replace one that another process has finished.
            if not (beside.is_dir() and path.is_dir()):
                raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes to `path`, with `write_beside`."""
    with write_beside(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json_lines(path: Path) -> list[Any]:
    """Reads the value of each line; ignores an unfinished last line. A missing file has no lines.

    Raises:
      ConfigError: a finished line is not JSON.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def parse_json(line: bytes, where: str) -> Any:
    """Parses one line of JSON; raises ConfigError that names the place `where` if it is not JSON."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is {line[:60]!r}; accepted: JSON") from error


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the place of each line, for messages, and its value; skips blank lines, for files that people write.

    Raises:
      ConfigError: a line is not JSON.
    """
    # str.splitlines would also cut at characters that a JSON string may contain.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_json(line, where)
