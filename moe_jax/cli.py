"""The command line: `python -m moe_jax`, or `moe-jax`."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError, override


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, or 2 after one line on what is wrong with the input."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ConfigError as error:
        print(f"moe-jax {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def load_config(path: Path) -> dict[str, Any]:
    """What `get_config()` of a Python file returns, an ml_collections ConfigDict, as nested dictionaries.

    Raises:
      ConfigError: there is no such file, or it defines no `get_config`.
    """
    if not path.is_file():
        raise ConfigError(f"CONFIG is {str(path)!r}, not a file; accepted: a Python file that defines get_config()")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"CONFIG is {str(path)!r}; accepted: a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"CONFIG is {str(path)!r}, without get_config; accepted: a file that defines get_config()")
    return module.get_config().to_dict()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-jax",
        description="Train and study sparse Mixture-of-Experts transformers.",
        epilog="example:\n  moe-jax train configs/laptop/switch_16.py --workdir runs/switch_16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train one model",
        description="Trains the model of a configuration file; in a directory that holds part of the same run, goes on "
        "where its last checkpoint stands.",
        epilog="example:\n  moe-jax train configs/laptop/switch_16.py --workdir runs/switch_16 \\\n"
        "    --set steps=200 --set model.moe.num_experts=8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG", type=Path, help="a Python file that defines get_config()")
    train.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="metrics and checkpoints go here")
    train.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a field, e.g. optimizer.learning_rate=1e-3",
    )
    train.set_defaults(run=_train)
    return parser


def _train(options: argparse.Namespace) -> None:
    # Imported here so that --help and a bad file name answer at once.
    from moe_jax.training.config import TrainConfig
    from moe_jax.training.loop import train

    config = TrainConfig.from_dict(override(load_config(options.config), options.set))
    result = train(config, options.workdir)
    last = result.curve[-1]
    print(
        f"{config.name}: validation loss {last['validation_loss']:.4f} nats/token, "
        f"{last['bits_per_byte']:.4f} bits/byte after {last['step']} steps, {last['tokens']:,} tokens and "
        f"{result.seconds:.0f} s of training; corpus {result.corpus_name}, digest {result.corpus_digest[:12]}"
    )
