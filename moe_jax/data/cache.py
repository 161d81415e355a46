"""Where prepared data is kept, and how it gets there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_directory() -> Path:
    """The folder for everything that can be computed again: `MOE_JAX_CACHE`, else `~/.cache/moe_jax`."""
    return Path(os.environ.get("MOE_JAX_CACHE") or "~/.cache/moe_jax").expanduser()


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
