"""The campaign, `make campaign`: drawn inputs, kills, full disks and broken files, for at most an hour on two cores.

It is no part of the suite. `python -m tests.campaign --part texts` runs one of its parts. The summary of a whole
campaign is written to RESULT, which is committed; the exit status is 1 if a case failed.
"""

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from tests.campaign.environment import set_environment
from tests.campaign.outcomes import Failure, Part, place_of

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "experiments" / "results" / "campaign.txt"
# The parts in their order, each a module of this folder, and the CPU devices of its runs.
PARTS = {"texts": 1, "interruptions": 1, "full_disk": 1, "lost_processes": 2, "layer_types": 1, "configurations": 8}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "hypothesis", "numpy")


def run(name: str, options: argparse.Namespace, until: float) -> Part:
    """Runs a part in a folder of its own, which is left there if a case failed."""
    folder = Path(tempfile.mkdtemp(prefix=f"moe_jax-campaign-{name}-"))
    set_environment(folder, PARTS[name])
    drawn = {"count": options.cases, "until": until} if name == "configurations" else {}
    started = time.time()
    try:
        part = importlib.import_module(f"tests.campaign.{name}").run(folder, options.seed, **drawn)
    except Exception as error:
        part = Part(name, seconds=time.time() - started)
        part.fail(Failure(f"the part itself: {place_of(error)}", ""))
    if not part.failures:
        shutil.rmtree(folder, ignore_errors=True)
    return part


def heading(options: argparse.Namespace) -> list[str]:
    """Says of which code on which machine this is the result."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    return [
        "The campaign: `make campaign`, after commit " + (commit or "unknown"),
        f"Python {platform.python_version()}, {versions}",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; seed {options.seed}",
    ]


def main() -> int:
    """Runs the parts that are asked for, and writes the summary of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="a part to run; may be repeated; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws; default: 0")
    parser.add_argument("--cases", type=int, default=10_000, help="configurations to draw; default: 10000")
    parser.add_argument(
        "--minutes", type=float, default=55, help="minutes after which no configuration is drawn any more; default: 55"
    )
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the summary of a whole campaign")
    options = parser.parse_args()
    lines, failed, started = heading(options), 0, time.time()
    until = started + 60 * options.minutes
    for name in options.part or PARTS:
        part = run(name, options, until)
        failed += part.counts["failed"]
        lines += ["", *part.lines()]
        print("\n".join(part.lines()), flush=True)
    load = f"load of the machine at the end {os.getloadavg()[2]:.1f}"
    lines += ["", f"{failed} failed; {(time.time() - started) / 60:.0f} minutes in all; {load}"]
    print(lines[-1])
    if options.part is None:
        options.output.write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
