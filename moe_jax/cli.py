"""The command line: `python -m moe_jax`, or `moe-jax`."""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moe_jax.commands import fit_law, repeats, score
from moe_jax.commands.printing import print_table
from moe_jax.configuration import ConfigError, override


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0; 1 after one line on how a run failed; 2 after one line on what is wrong with the input.
    """
    options = cli_parser().parse_args(arguments)
    try:
        return options.run(options)
    except ConfigError as error:
        print(f"moe-jax {options.command}: {error}", file=sys.stderr)
        return 2


def load_config(location: str) -> dict[str, Any]:
    """What `get_config` of a Python file returns, an ml_collections ConfigDict, as nested dictionaries.

    Args:
      location: `PATH`, whose get_config() is called, or `PATH:ARGUMENT`, whose get_config(ARGUMENT) is.

    Raises:
      ConfigError: there is no such Python file, it defines no `get_config`, or `get_config` does not take ARGUMENT: it
        raises ValueError or KeyError.
    """
    path, colon, argument = location.partition(":")
    get_config = _module(location, Path(path)).get("get_config")
    if get_config is None:
        raise ConfigError(f"CONFIG is {location!r}, without get_config; accepted: a file that defines get_config()")
    arguments = [argument] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"CONFIG is {location!r}, but the file has get_config{inspect.signature(get_config)}; accepted: "
            "PATH:ARGUMENT where it takes an argument, else PATH"
        ) from error
    try:
        config = get_config(*arguments)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"CONFIG is {location!r}, for which get_config raises {error!r}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"CONFIG is {location!r}, which gives a {type(config).__name__}; accepted: a ConfigDict")
    return config.to_dict()


def _module(location: str, path: Path) -> dict[str, Any]:
    """Runs a Python file and returns its names. It is not imported: that leaves, and may read stale, compiled files."""
    if not path.is_file():
        raise ConfigError(f"CONFIG is {location!r}, not a file; accepted: a Python file that defines get_config()")
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path.absolute())}
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"CONFIG is {location!r}; accepted: a Python file; {error}") from error
    exec(code, names)
    return names


def cli_parser() -> argparse.ArgumentParser:
    """Of all commands and their options."""
    parser = argparse.ArgumentParser(
        prog="moe-jax",
        description="Train and study sparse Mixture-of-Experts transformers.",
        epilog="example:\n  moe-jax train configs/laptop/switch_vs_dense.py:switch-16 --workdir runs/switch-16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train one model",
        description="Trains the model of a configuration file; in a directory that holds part of the same run, goes on "
        "where its last checkpoint stands.",
        epilog="example:\n  moe-jax train configs/laptop/switch_vs_dense.py:switch-16 --workdir runs/switch-16 \\\n"
        "    --set steps=200 --set model.moe.num_experts=8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "config",
        metavar="CONFIG",
        help="PATH of a Python file that defines get_config(), or PATH:ARGUMENT for its get_config(ARGUMENT)",
    )
    train.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="metrics and checkpoints go here")
    train.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a field, e.g. optimizer.learning_rate=1e-3",
    )
    train.add_argument(
        "--distributed",
        metavar="HOW",
        help="join the processes of a cluster: auto (SLURM, Open MPI, Cloud TPU, Kubernetes), or HOST:PORT,COUNT,INDEX",
    )
    train.set_defaults(run=_train)
    routers = commands.add_parser(
        "routers",
        help="list the routers",
        description="Lists every router with its paper, the experts per token it takes, whether it is "
        "safe in a causal model, whether a capacity may drop tokens, and its losses with their papers' coefficients. "
        "All of it is said of the default options.",
        epilog="example:\n  moe-jax routers --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    routers.add_argument("--json", action="store_true", help="one JSON object per line")
    routers.set_defaults(run=_routers)
    fit_law.add(commands)
    score.add(commands)
    repeats.add(commands)
    return parser


def _routers(options: argparse.Namespace) -> int:
    from moe_jax.routing import describe_routers

    rows = describe_routers()
    if options.json:
        print("\n".join(json.dumps(row) for row in rows))
        return 0
    for row in rows:
        row["losses"] = ", ".join(f"{name} {value:g}" for name, value in row["losses"].items()) or "-"
        row["k"] = ", ".join(map(str, row["k"])) if isinstance(row["k"], list) else {"all": "E"}.get(row["k"], "any")
        row["causal"], row["drops"] = ("yes" if row[key] else "no" for key in ("causal", "drops"))
    columns = ("name", "year", "k", "causal", "drops", "losses", "paper")
    print_table([columns, *([str(row[column]) for column in columns] for row in rows)])
    return 0


def _processes(how: str) -> Any:
    from moe_jax.training.distributed import Processes

    if how == "auto":
        return Processes()
    fields = how.split(",")
    accepted = "accepted: auto, or HOST:PORT,COUNT,INDEX, for example 10.0.0.1:1234,4,0"
    if len(fields) != 3 or not all(field.isdigit() for field in fields[1:]):
        raise ConfigError(f"--distributed is {how!r}; {accepted}")
    return Processes(fields[0], int(fields[1]), int(fields[2]))


def _train(options: argparse.Namespace) -> int:
    # Imported here so that --help and a bad file name answer at once.
    from jax.errors import JaxRuntimeError

    from moe_jax.training.config import TrainConfig
    from moe_jax.training.distributed import is_writer, start
    from moe_jax.training.loop import train
    from moe_jax.training.result import DivergenceError

    config = TrainConfig.from_dict(override(load_config(options.config), options.set))
    if options.distributed:
        start(_processes(options.distributed))
    try:
        result = train(config, options.workdir)
    except DivergenceError as error:
        print(f"moe-jax train: {error}", file=sys.stderr)
        return 1
    except JaxRuntimeError as error:
        if not options.distributed:
            raise
        reason = str(error).splitlines()[0]
        print(
            f"moe-jax train: processes no longer reach each other: {reason}; the same commands, "
            "once all can run again, go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        # To leave in good order would be to wait for the process that is lost.
        os._exit(1)
    if not is_writer():
        return 0
    last = result.curve[-1]
    print(
        f"{config.name}: validation loss {last['validation_loss']:.4f} nats/token, "
        f"{last['bits_per_byte']:.4f} bits/byte after {last['step']} steps, {last['tokens']:,} tokens and "
        f"{result.seconds:.0f} s of training; corpus {result.corpus_name}, digest {result.corpus_digest[:12]}"
    )
    return 0
