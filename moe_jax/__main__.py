"""`python -m moe_jax`, and the console script `moe-jax`: a process that does one command."""

import sys

from moe_jax.cli import main
from moe_jax.runtime.host_memory import keep_freed_memory


def run() -> int:
    """Sets the process up, runs the command of its arguments and returns the exit status."""
    keep_freed_memory()
    return main()


if __name__ == "__main__":
    sys.exit(run())
