"""The options that the commands of studies accept."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from moe_jax.study.study import Study


def study_parser(name: str, description: str, studies: Sequence[Study]) -> argparse.ArgumentParser:
    """Returns the parser of a command that runs one study, or some of several.

    Args:
      name: the module's in `experiments`; see `output_folder`.
      description: the beginning of --help.
      studies: the command's; all have the same presets.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    shared = "Given on several machines that share the folder of --output, the command shares out the runs among them."
    presets = studies[0].presets
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter, epilog=shared)
    if len(studies) > 1:
        names = ", ".join(study.name for study in studies)
        parser.add_argument("study", nargs="*", metavar="STUDY", help=f"some of {names}; default: all")
    parser.add_argument("--preset", choices=list(presets), default="laptop")
    parser.add_argument("--seeds", type=at_least_one, help="runs of each model; default: the preset's number")
    parser.add_argument("--output", type=Path, help=f"runs, results and reports; default: runs/{name}-PRESET")
    parser.add_argument(
        "--jobs",
        type=at_least_one,
        help="runs at a time, each on its share of the cores; default: one a core, or the study's number",
    )
    parser.add_argument("--models", nargs="+", default=[], help="train only these of the study's models; default: all")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a field of all runs")
    chooser = studies[0].chooser
    if chooser is not None:
        models = ", ".join(dict.fromkeys(model.name for model in studies[0].models))
        accepted = f"train these, and the models that they are compared with; some of {models}"
        parser.add_argument(f"--{chooser}", dest="chooser", metavar="A,B,...", help=accepted)
    if any(preset.watts is not None for preset in presets.values()):
        parser.add_argument("--watts", type=power, help="power to assume for the stated energy; default: the preset's")
    return parser


def output_folder(name: str, options: argparse.Namespace) -> Path:
    """Returns --output, or `runs/NAME-PRESET` if it was left out."""
    return options.output or Path("runs") / f"{name}-{options.preset}"


def at_least_one(text: str) -> int:
    """Reads a number of seeds or jobs.

    Raises:
      argparse.ArgumentTypeError: it is below one, or no integer.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; accepted: an integer of at least 1")
    return int(text)


def power(text: str) -> float:
    """Reads a power in watts.

    Raises:
      argparse.ArgumentTypeError: it is not a positive number.
    """
    try:
        watts = float(text)
    except ValueError:
        watts = math.nan
    if not 0 < watts < math.inf:
        raise argparse.ArgumentTypeError(f"{text}; accepted: a positive number")
    return watts


def given(options: argparse.Namespace, chooser: str | None = None) -> list[str]:
    """Returns the preset and, if they were given, the seeds, models and fields: what a report's command repeats.

    Args:
      options: of `study_parser`.
      chooser: the study's.
    """
    arguments = ["--preset", options.preset]
    arguments += ["--seeds", str(options.seeds)] if options.seeds else []
    arguments += ["--models", *options.models] if options.models else []
    arguments += [f"--{chooser}", options.chooser] if chooser and options.chooser else []
    return arguments + [part for assignment in options.set for part in ("--set", assignment)]
