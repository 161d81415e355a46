"""Files and folders that are there whole or not at all."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
