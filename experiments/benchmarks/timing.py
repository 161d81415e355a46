"""What all benchmarks share: taking turns, what the numbers depend on, and printing them as text or as JSON."""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from moe_jax.configuration import ConfigError, require
from moe_jax.runtime.files import write_whole
from moe_jax.study.provenance import git_revision, host, versions

WARM_UP = 2
SETTLES = 3.0

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


class BenchmarkError(Exception):
    """What ends a benchmark: its numbers would mean nothing."""


def take_turns(
    works: Mapping[Name, Callable[[], Any]], repeats: int, patience: float = math.inf
) -> dict[Name, list[float]]:
    """Seconds of each work in each of `repeats` rounds in which all take turns, after rounds that do not count.

    A machine whose speed drifts is then as fast for one as for another. What takes less than SETTLES seconds is done
    once more before it is timed: another's threads may still wait for work, and caches and memory be another's, too.

    Args:
      works: each does its work once and waits for the end.
      repeats: rounds that count.
      patience: a work that takes longer than these seconds is not done again, and that time is its only one.
    """
    spent: dict[Name, list[float]] = {name: [] for name in works}
    for _ in tqdm(range(WARM_UP + repeats), "Timing", delay=2, leave=False):
        for name, work in works.items():
            if max(spent[name], default=0.0) > patience:
                continue
            if spent[name] and spent[name][-1] < SETTLES:
                work()
            started = time.perf_counter()
            work()
            spent[name].append(time.perf_counter() - started)
    return {name: seconds[min(WARM_UP, len(seconds) - 1) :] for name, seconds in spent.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(spent: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of the time over the base's in the same round; of what is there of both."""
    return statistics.median(one / other for one, other in zip(spent, base, strict=False))


def header_row(**fields: Any) -> Row:
    """What numbers depend on: the machine, the software, and the `fields` of one benchmark."""
    return {"row": "header", "host": host(), "versions": versions(), "revision": git_revision()} | fields


def machine_line(header: Row) -> str:
    """The header for people, without the benchmark's own fields."""
    busy = f"; load before: {header['load_before']}" if "load_before" in header else ""
    machine = f"{header['host']['cpu']}, {header['host']['cores']} cores, {platform.machine()}"
    if header["host"]["platform"] != "cpu":
        machine += f", {header['host']['device']}"
    software = ", ".join(f"{name} {header['versions'][name]}" for name in ("jax", "python"))
    return f"{machine}; {software}; revision {header['revision']}{busy}"


def benchmark_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns of timing; default: {repeats}")
    parser.add_argument("--json", action="store_true", help="one JSON object per row, the first one of the machine")
    parser.add_argument("--output", metavar="FILE", type=Path, help="what is printed goes here, too")
    return parser


def run_benchmark(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[], tuple[Row, Sequence[Row]]],
    table: Callable[[Row, Sequence[Row]], str],
) -> int:
    """Prints what `measure` gives, a header and rows, and returns the exit status.

    Args:
      name: of the benchmark, for its errors.
      options: parsed by a `benchmark_parser`.
      measure: a ConfigError or BenchmarkError of it is printed as one line.
      table: rows for people.
    """
    try:
        require(options.repeats >= 1, "--repeats", options.repeats, "an integer of at least 1")
        # How many others wanted a core before: with any, times are not the machine's.
        busy = {"load_before": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}
        header, rows = measure()
        header |= busy
    except (ConfigError, BenchmarkError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    text = "\n".join(map(json.dumps, [header, *rows])) if options.json else table(header, rows)
    if options.output:
        write_whole(options.output, text + "\n")
    print(text)
    return 0
