"""Files that survive a kill."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it, so that `path` never holds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    os.replace(beside, path)
