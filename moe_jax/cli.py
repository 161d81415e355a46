"""The command line, `python -m moe_jax` or `moe-jax`."""

import argparse
import contextlib
import inspect
import json
import os
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from moe_jax.commands import fit_law, repeats, score
from moe_jax.commands.printing import print_table
from moe_jax.configuration import REQUIRED, ConfigError, override


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    The status is 0 on success, 1 if a run failed, and 2 if the input is wrong; errors are one line on stderr.
    """
    options = cli_parser().parse_args(arguments)
    try:
        return options.run(options)
    except ConfigError as error:
        print(f"moe-jax {options.command}: {error}", file=sys.stderr)
        return 2


def load_config(location: str) -> dict[str, Any]:
    """Calls `get_config` of a Python file and returns its ConfigDict as nested dictionaries.

    Args:
      location: `PATH` for get_config(), or `PATH:ARGUMENT` for get_config(ARGUMENT).

    The file may import what lies beside it or above it. A required placeholder becomes REQUIRED, for --set to replace.

    Raises:
      ConfigError: no such Python file, it defines no `get_config`, it or `get_config` raises, or `get_config` does not
        return a ConfigDict.
    """
    path, colon, argument = location.partition(":")
    if not os.path.isfile(path):
        raise ConfigError(f"CONFIG is {location!r}, not a file; accepted: a Python file that defines get_config")
    arguments = [argument] if colon else []
    with _imports_from(Path(path).resolve()):
        module = _run_file(location, Path(path))
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise ConfigError(f"CONFIG is {location!r}, which defines no get_config; accepted: a file that defines it")
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError as error:
            raise ConfigError(
                f"CONFIG is {location!r}, but the file defines get_config{inspect.signature(get_config)}; accepted: "
                "PATH:ARGUMENT if get_config takes an argument, else PATH"
            ) from error
        try:
            config = get_config(*arguments)
        except Exception as error:
            raise ConfigError(f"CONFIG is {location!r}, but its get_config raised {_in_words(error)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"CONFIG is {location!r}, whose get_config returns a {type(config).__name__}; accepted: a ConfigDict"
        )
    return _filled(config)


def _run_file(location: str, path: Path) -> types.ModuleType:
    """Runs a Python file and returns its module; importing it would leave, or read, compiled files."""
    module = types.ModuleType(f"moe_jax_config_{path.stem}")
    module.__file__ = str(path.absolute())
    # Dataclasses look for their module.
    sys.modules[module.__name__] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except SyntaxError as error:
        raise ConfigError(f"CONFIG is {location!r}, which is not valid Python: {error}") from error
    except Exception as error:
        raise ConfigError(f"CONFIG is {location!r}, which raised {_in_words(error)}") from error
    return module


@contextlib.contextmanager
def _imports_from(path: Path) -> Iterator[None]:
    """Lets a file import modules in its folder and in those above it, after all that Python finds anyway."""
    before = list(sys.path)
    sys.path.extend(str(folder) for folder in path.parents)
    try:
        yield
    finally:
        sys.path[:] = before


def _in_words(error: Exception) -> str:
    """Describes an error with the place that raised it, on one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{' '.join(repr(error).split())} at {Path(place.filename).name}:{place.lineno}"


def _filled(config: ConfigDict) -> dict[str, Any]:
    """Returns nested dictionaries, with REQUIRED for required placeholders that have no value."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(plain, value))
        return _filled(value) if isinstance(value, ConfigDict) else value

    values = {}
    for key in config:
        try:
            values[key] = plain(config[key])
        except RequiredValueError:
            values[key] = REQUIRED
    return values


def cli_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands and their options."""
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
        description="Trains the model of a configuration file. If the work directory holds a checkpoint of the same "
        "run, training goes on from it.",
        epilog="example:\n  moe-jax train configs/laptop/switch_vs_dense.py:switch-16 --workdir runs/switch-16 \\\n"
        "    --set steps=200 --set model.moe.num_experts=8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "config",
        metavar="CONFIG",
        help="PATH of a Python file, whose get_config() returns a configuration, or PATH:ARGUMENT for "
        "get_config(ARGUMENT)",
    )
    train.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="folder for metrics and checkpoints")
    train.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a field, for example optimizer.learning_rate=1e-3; may be repeated",
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
        description="Lists every router: its paper, the k it accepts, whether it is causal, whether a capacity may "
        "drop assignments, and its losses with their default coefficients. Options of a router may change this.",
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

    from moe_jax.runtime.files import WriteError
    from moe_jax.training.config import TrainConfig
    from moe_jax.training.distributed import is_writer, start
    from moe_jax.training.loop import train
    from moe_jax.training.result import DivergenceError
    from moe_jax.training.termination import EXIT_STATUS, TerminatedError

    config = TrainConfig.from_dict(override(load_config(options.config), options.set))
    if options.distributed:
        start(_processes(options.distributed))
    try:
        result = train(config, options.workdir)
    except DivergenceError as error:
        print(f"moe-jax train: {error}", file=sys.stderr)
        return 1
    except WriteError as error:
        print(f"moe-jax train: {error}; the same command goes on when there is room", file=sys.stderr, flush=True)
        # Threads that failed to write would say so at an orderly exit, which would also wait for other processes.
        os._exit(1)
    except TerminatedError as error:
        if is_writer():
            print(f"moe-jax train: {error}", file=sys.stderr)
        return EXIT_STATUS
    except JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("RESOURCE_EXHAUSTED"):
            advice = "try accumulation=4, model.remat=True, a smaller data.batch_size or more devices"
        elif options.distributed:
            reason = f"a process was lost: {reason}"
            advice = "run the same commands again to go on from the last checkpoint"
        else:
            raise
        print(f"moe-jax train: {reason}; {advice}", file=sys.stderr, flush=True)
        if options.distributed:
            # An orderly exit would wait for the lost process.
            os._exit(1)
        return 1
    if not is_writer():
        return 0
    last = result.curve[-1]
    print(
        f"{config.name}: validation loss {last['validation_loss']:.4f} nats/token, "
        f"{last['bits_per_byte']:.4f} bits/byte after {last['step']} steps, {last['tokens']:,} tokens and "
        f"{result.seconds:.0f} s of training; corpus {result.corpus_name}, digest {result.corpus_digest[:12]}"
    )
    return 0
