"""Common parts of benchmarks: timing in turns, the header with machine and versions, output as text or JSON."""

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
    """Raised when the numbers of a benchmark would mean nothing; ends it."""


def take_turns(
    works: Mapping[Name, Callable[[], Any]], repeats: int, patience: float = math.inf
) -> dict[Name, list[float]]:
    """Times works by turns: seconds of each in each of `repeats` rounds, after warm-up rounds that do not count.

    Turns make a drift of the machine's speed affect all works alike. A work of less than SETTLES seconds is run once
    more before it is timed, because threads, caches and memory may still be occupied by the work before it.

    Args:
      works: functions that do their work once and wait for the end.
      repeats: number of rounds that count.
      patience: seconds; a slower work is run once only.
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
    """Returns median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(spent: Sequence[float], base: Sequence[float]) -> float:
    """Returns the median, over rounds that both have, of the time relative to the base's in the same round."""
    return statistics.median(one / other for one, other in zip(spent, base, strict=False))


def header_row(**fields: Any) -> Row:
    """Returns the header of a benchmark: the machine, the software, and its own `fields`."""
    return {"row": "header", "host": host(), "versions": versions(), "revision": git_revision()} | fields


def machine_line(header: Row) -> str:
    """Formats the machine and the software of a header as text."""
    busy = f"; load before: {header['load_before']}" if "load_before" in header else ""
    machine = f"{header['host']['cpu']}, {header['host']['cores']} cores, {platform.machine()}"
    if header["host"]["platform"] != "cpu":
        machine += f", {header['host']['device']}"
    software = ", ".join(f"{name} {header['versions'][name]}" for name in ("jax", "python"))
    return f"{machine}; {software}; revision {header['revision']}{busy}"


def benchmark_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """Makes a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds of timing; default: {repeats}")
    parser.add_argument("--json", action="store_true", help="print one JSON object per row, the header first")
    parser.add_argument("--output", metavar="FILE", type=Path, help="also write the output to this file")
    return parser


def run_benchmark(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[], tuple[Row, Sequence[Row]]],
    table: Callable[[Row, Sequence[Row]], str],
) -> int:
    """Measures, prints the header and the rows, and returns the exit status.

    Args:
      name: name of the benchmark in its error messages.
      options: options of a `benchmark_parser`.
      measure: returns the header and the rows; its ConfigError or BenchmarkError is printed as one line.
      table: formats header and rows as text.
    """
    try:
        require(options.repeats >= 1, "--repeats", options.repeats, "an integer of at least 1")
        # Load by other processes makes the times unreliable.
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
