"""Files and folders that are written whole or not at all, and lines of JSON."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or a folder, and renames it to `path` if the block succeeds.

    If several processes write the same `path` at the same time, each writes its own, and one of them is kept.
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
    """Writes bytes, or text in UTF-8, to `path` by `write_beside`."""
    with write_beside(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json_lines(path: Path) -> list[Any]:
    """Reads a file with a JSON value on each line; a missing file has no lines.

    A last line without an end is ignored: a process was killed while it wrote it.

    Raises:
      ConfigError: a line is not JSON.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def parse_json(line: bytes, where: str) -> Any:
    """Reads one line of JSON; raises ConfigError, naming the place `where`, if it is not JSON."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is {line[:60]!r}; accepted: JSON") from error


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the value on each line of a file of JSON lines that a person wrote, after its place for messages.

    Blank lines are skipped.

    Raises:
      ConfigError: a line is not JSON.
    """
    # str.splitlines would also cut at characters that a text in JSON may hold.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_json(line, where)
