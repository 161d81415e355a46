"""The folder of prepared data."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from moe_jax.configuration import ConfigError
from moe_jax.runtime.files import WriteError, disk_reason, write_beside

ACCEPTED = "accepted: MOE_JAX_CACHE=FOLDER, a folder that can be written to and has space"


def cache_directory() -> Path:
    """Returns the folder for everything that can be computed again: `MOE_JAX_CACHE`, else `~/.cache/moe_jax`.

    Raises:
      ConfigError: there is neither MOE_JAX_CACHE nor a home.
    """
    try:
        return Path(os.environ.get("MOE_JAX_CACHE") or "~/.cache/moe_jax").expanduser()
    except RuntimeError as error:
        raise ConfigError(f"this user has no home for ~/.cache/moe_jax; {ACCEPTED}") from error


@contextlib.contextmanager
def write_cached(path: Path) -> Iterator[Path]:
    """Yields a temporary path, as `write_beside` does, for prepared data.

    Raises:
      ConfigError: the folder cannot be written to, or is full; the message names MOE_JAX_CACHE.
    """
    try:
        with write_beside(path) as beside:
            yield beside
    except WriteError as error:
        raise ConfigError(f"{error}; {ACCEPTED}") from error
    except Exception as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise ConfigError(f"{str(path)!r} cannot be written: {reason}; {ACCEPTED}") from error
