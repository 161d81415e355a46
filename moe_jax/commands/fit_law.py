"""Command `moe-jax fit-law`: fits a scaling law to a table of losses."""

import argparse
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError


def add(commands: Any) -> None:
    """Adds the command to the subparsers of `moe-jax`."""
    command = commands.add_parser(
        "fit-law",
        help="fit a scaling law to a table of losses",
        description="Fits a scaling law to losses. Prints its coefficients with 95% intervals beside the published "
        "ones, its error, and the effective parameters of the table's models. TABLE is CSV with a header, or the "
        "results.jsonl of a study. Columns: N parameters, E experts, D tokens, G granularity, loss in nats per token; "
        "others are ignored.",
        epilog="example:\n  moe-jax fit-law experiments/data/clark_2022.csv --output runs/clark",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("table", metavar="TABLE", type=Path, help="a CSV file or a results.jsonl")
    command.add_argument(
        "--law",
        default="auto",
        help="routed (N, E), bilinear (N, E, without saturation), experts (E), fine_grained (N, D, G), dense (N, D), "
        "power (N), or auto, the first of these that the table determines; default: auto",
    )
    command.add_argument("--output", metavar="DIR", type=Path, help="folder for LAW.png and LAW.json")
    command.add_argument(
        "--bootstrap", metavar="N", type=int, default=200, help="bootstrap samples for the intervals; default: 200"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap; default: 0")
    command.set_defaults(run=_fit_law)


def _fit_law(options: argparse.Namespace) -> int:
    from moe_jax.analysis.scaling_fit import fit_law
    from moe_jax.analysis.scaling_report import format_fit, write_fit
    from moe_jax.analysis.scaling_tables import choose_law, read_losses

    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"--output is {str(options.output)!r}, a file; accepted: a folder, which is made if need be")
    table = read_losses(options.table)
    law = choose_law(table) if options.law == "auto" else options.law
    if options.law == "auto":
        print(f"--law auto chose {law}\n")
    fit = fit_law(table, law, bootstrap=options.bootstrap, seed=options.seed, progress=True)
    print(format_fit(fit, table))
    if options.output is not None:
        print("\nwritten: " + ", ".join(map(str, write_fit(fit, table, options.output))))
    return 0
