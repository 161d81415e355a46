"""Files and folders that are written whole or not at all, files that grow, and files of JSON lines."""

import codecs
import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""Numbers of the errors of a disk that is full, may not be written to, or fails."""


class WriteError(Exception):
    """A file or folder that cannot be written, as on a full disk; the message is one line that names it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises a WriteError that names `path` for an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{str(path)!r} cannot be written: {error}") from error


def disk_reason(error: BaseException | None) -> str | None:
    """Returns the system's reason for which a file could not be written, in words; None for another error.

    Libraries raise types of their own, which quote the system or have its error for a cause.
    """
    while error is not None:
        if isinstance(error, OSError):
            return str(error)
        found = re.search(r"([^:]*) \[os_error_code=", str(error))
        if found is not None:
            return found[1].strip()
        said = next((words for words in map(os.strerror, DISK_ERRORS) if words in str(error)), None)
        if said is not None:
            return said
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` if the block succeeds.

    Processes that write the same `path` at the same time each write their own copy, and one copy is kept.

    Raises:
      WriteError: there is an OSError.
    """
    with writing(path):
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


class GrowingFile:
    """A file that grows at its end. What is appended survives the end of the process, though not yet of the machine.

    All methods raise WriteError where the file cannot be written.

    Args:
      path: the file, made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            # Nothing waits in a buffer: a full disk shows where a line is lost, and not again when the process ends.
            self._file = path.open("ab", buffering=0)

    def write(self, content: bytes) -> None:
        """Appends all of `content`."""
        rest = memoryview(content)
        with writing(self.path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        """Waits until all is on disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Waits until all is on disk, and closes the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def read_content(path: Path) -> bytes:
    """Reads a file that a person names; raises ConfigError that names it where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; accepted: a file that can be read") from error


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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is {line[:60]!r}; accepted: JSON") from error


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the place of each line, for messages, and its value, for files that people write.

    Skips blank lines, and the mark of byte order that some editors put first.

    Raises:
      ConfigError: the file cannot be read, or a line is not JSON.
    """
    content = read_content(path).removeprefix(codecs.BOM_UTF8)
    # str.splitlines would also cut at characters that a JSON string may contain.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_json(line, where)
