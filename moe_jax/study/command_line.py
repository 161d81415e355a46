"""What the commands of all studies accept."""

import argparse
from collections.abc import Iterable
from pathlib import Path


def study_parser(name: str, description: str, presets: Iterable[str]) -> argparse.ArgumentParser:
    """A parser with --preset, of which the default is `laptop`, --seeds and --output, which are None if left out.

    Args:
      name: of the module in `experiments`; see `output_folder`.
      description: what --help says first.
      presets: accepted for --preset.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--preset", choices=list(presets), default="laptop")
    parser.add_argument("--seeds", type=at_least_one, help="number of seeds, from 0; default: the preset's")
    parser.add_argument("--output", type=Path, help=f"runs, results and reports; default: runs/{name}-PRESET")
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds --jobs, which is None if left out, and --models and --set, which are empty."""
    parser.add_argument(
        "--jobs", type=at_least_one, help="runs at a time, each on its share of the cores; default: one a core"
    )
    parser.add_argument("--models", nargs="+", default=[], help="only these of the study's models; default: all")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a field of all runs")


def output_folder(name: str, options: argparse.Namespace) -> Path:
    """Where results go: --output, or `runs/NAME-PRESET` if it is left out."""
    return options.output or Path("runs") / f"{name}-{options.preset}"


def at_least_one(text: str) -> int:
    """The number that an option is given.

    Raises:
      argparse.ArgumentTypeError: it is below one, or no integer.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; accepted: an integer of at least 1")
    return int(text)


def given(options: argparse.Namespace) -> list[str]:
    """The preset and, where they were given, the seeds, models and fields: what a report's command repeats."""
    arguments = ["--preset", options.preset]
    arguments += ["--seeds", str(options.seeds)] if options.seeds else []
    arguments += ["--models", *options.models] if options.models else []
    return arguments + [part for assignment in options.set for part in ("--set", assignment)]
