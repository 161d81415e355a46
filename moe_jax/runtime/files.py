"""Files and folders that are written whole or not at all, and files of JSON lines."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError


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
