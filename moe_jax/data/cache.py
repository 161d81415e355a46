"""Where prepared data is kept."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The folder for everything that can be computed again: `MOE_JAX_CACHE`, else `~/.cache/moe_jax`."""
    return Path(os.environ.get("MOE_JAX_CACHE") or "~/.cache/moe_jax").expanduser()
