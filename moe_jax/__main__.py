"""Entry point of `python -m moe_jax` and of the console script `moe-jax`."""

import sys

from moe_jax.cli import main
from moe_jax.runtime.host_memory import keep_freed_memory


def run() -> int:
    """Prepares the process, runs the command of its arguments and returns the exit status."""
    keep_freed_memory()
    # A name may have what the terminal's encoding lacks; stderr shows such characters escaped anyway.
    sys.stdout.reconfigure(errors="backslashreplace")
    return main()


if __name__ == "__main__":
    sys.exit(run())
