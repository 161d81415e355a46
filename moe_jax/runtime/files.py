"""Files and folders that are there whole or not at all, and lines of JSON that are."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what the block writes there, a file or a folder, is renamed to `path` if it succeeds.

    Processes that write the same `path` at the same time each write their own, and one of them is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        beside = Path(folder) / path.name
        yield beside
        try:
            beside.replace(path)
        except OSError:
            if not (beside.is_dir() and path.is_dir()):  # A folder cannot replace one that another process finished.
                raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes text, in UTF-8, or bytes to `path`, by way of `write_beside`."""
    with write_beside(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json_lines(path: Path) -> list[Any]:
    """What each line of a file holds; half a line that a kill left at the end is ignored, and no file is no lines.

    Raises:
      ConfigError: a line that is not JSON, which no kill leaves behind.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def parse_json(line: bytes, where: str) -> Any:
    """What one line of JSON holds; raises ConfigError that says `where` it is if it is not JSON."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is {line[:60]!r}; accepted: JSON") from error


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """What each line of a file that people wrote holds, with its place for messages; blank lines are passed over.

    Raises:
      ConfigError: a line is not JSON.
    """
    # Not by str.splitlines, which also cuts at characters that a text in JSON may hold.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_json(line, where)
