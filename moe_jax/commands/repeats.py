"""Command `moe-jax repeats`: the loss of trained models on repeated text and on other text."""

import argparse
import json
from pathlib import Path
from typing import Any

from moe_jax.commands.printing import print_table


def add(commands: Any) -> None:
    """Adds the command to the subparsers of `moe-jax`."""
    repeats = commands.add_parser(
        "repeats",
        help="compare the loss of trained models on repeated text and on other text",
        description="Prints the validation loss of trained decoders, in nats per token, on repeats and on all other "
        "tokens. A token is a repeat if it and the token before it stand next to each other earlier in the document.",
        epilog="example:\n  moe-jax repeats runs/dense runs/switch-16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    repeats.add_argument("workdirs", metavar="WORKDIR", type=Path, nargs="+", help="directories of trained runs")
    repeats.add_argument("--json", action="store_true", help="one JSON object per line")
    repeats.set_defaults(run=_repeats)


def _repeats(options: argparse.Namespace) -> int:
    from moe_jax.analysis.repeats import loss_by_repeats
    from moe_jax.training.trained import load_run

    rows = []
    for workdir in options.workdirs:
        run = load_run(workdir)
        of_run = {"name": run.config.name, "seed": run.config.seed, "step": int(run.state.step)}
        rows.append(of_run | loss_by_repeats(run)._asdict())
    if options.json:
        print("\n".join(map(json.dumps, rows)))
        return 0
    cells = ([f"{x:.3f}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows)
    print_table([tuple(rows[0]), *cells])
    return 0
