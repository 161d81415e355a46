"""The folder of prepared data."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Returns the folder for everything that can be computed again: `MOE_JAX_CACHE`, else `~/.cache/moe_jax`."""
    return Path(os.environ.get("MOE_JAX_CACHE") or "~/.cache/moe_jax").expanduser()
