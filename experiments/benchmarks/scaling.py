"""Benchmark of a layer's scaling: its cost by the number of tokens, and by the number of experts at equal active FLOPs.

    python -m experiments.benchmarks.scaling                     # minutes, with nothing else running
    python -m experiments.benchmarks.scaling --workload zipf --kernel blocks

It times forward and backward of `dropless`, and of a dense network as wide as the experts of a token together, in the
shape of the laptop's layer: with 16 experts and 1k to 64k tokens, and with 8 to 256 experts and 16k tokens. The
exponent p of time ~ tokens**p is a least-squares fit to the logarithms from 4k tokens on. The ratio is the time with
the most experts over that with the fewest. Sizes take turns, and numbers are medians over turns. Results are compared
with the oracle on fewer tokens before anything is timed.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.layer_ways import DENSE, Runner, draw_problem, with_fewer_tokens
from experiments.benchmarks.moe_layer import check_ways, make_runners
from experiments.benchmarks.shapes import SHAPES, WORKLOADS, LayerShape
from experiments.benchmarks.timing import (
    BenchmarkError,
    Row,
    benchmark_parser,
    header_row,
    machine_line,
    ratio,
    run_benchmark,
    spread,
    take_turns,
)
from moe_jax.configuration import require_name
from moe_jax.experts.kernels.choice import available
from moe_jax.runtime.host_memory import keep_freed_memory

SHAPE = SHAPES["laptop"]
TOKENS = tuple(1024 << i for i in range(7))
FITTED_FROM = 4096
EXPERTS = tuple(8 << i for i in range(6))
TOKENS_OF_EXPERTS = 16384
# Sweep -> the field of a shape that it changes.
SWEEPS = {"tokens": "tokens", "experts": "num_experts"}


def sweep_shapes() -> dict[str, list[LayerShape]]:
    """Returns the shapes of each sweep."""
    return {
        "tokens": [SHAPE._replace(tokens=tokens) for tokens in TOKENS],
        "experts": [SHAPE._replace(num_experts=experts, tokens=TOKENS_OF_EXPERTS) for experts in EXPERTS],
    }


def checked_runners(names: Sequence[str], shape: LayerShape, workload: str) -> dict[str, Runner]:
    """Compiles each way for a problem of `shape`; raises BenchmarkError if it cannot run or differs from the oracle."""
    problem = draw_problem(shape, workload)
    check_ways(names, with_fewer_tokens(problem, workload))
    runners, reasons = make_runners(names, problem)
    for name, reason in reasons.items():
        raise BenchmarkError(f"{name} with {shape.tokens} tokens and {shape.num_experts} experts {reason}")
    return runners


def sweep_rows(sweep: str, shapes: Sequence[LayerShape], way: str, workload: str, repeats: int) -> list[Row]:
    """Times the shapes of a sweep; returns a row for each and a summary."""
    field = SWEEPS[sweep]
    works = {}
    for shape in tqdm(shapes, f"Compiling {sweep}", delay=2):
        for name, runner in checked_runners([DENSE, way], shape, workload).items():
            works[getattr(shape, field), name] = runner.training
    spent = take_turns(works, repeats)
    rows = []
    for size in (getattr(shape, field) for shape in shapes):
        row: Row = {"row": "size", "sweep": sweep, field: size}
        row |= {name: spread([1000 * s for s in spent[size, name]]) for name in (DENSE, way)}
        rows.append(row | {"to_dense": ratio(spent[size, way], spent[size, DENSE])})
    return [*rows, summary_row(sweep, way, spent)]


def summary_row(sweep: str, way: str, spent: Mapping[tuple[int, str], Sequence[float]]) -> Row:
    """Summarizes a sweep: the exponents of tokens, or the time with the most experts over that with the fewest."""
    row: Row = {"row": "summary", "sweep": sweep}
    for name in (DENSE, way):
        times = {size: seconds for (size, of), seconds in spent.items() if of == name}
        if sweep == "tokens":
            fitted = {size: statistics.median(seconds) for size, seconds in times.items() if size >= FITTED_FROM}
            row[name] = exponent(fitted)
        else:
            row[name] = ratio(times[max(times)], times[min(times)])
    return row


def exponent(seconds: Mapping[int, float]) -> float:
    """Fits the exponent p of seconds ~ size**p by least squares of the logarithms."""
    slope, _ = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)
    return float(slope)


def table(header: Row, rows: Sequence[Row]) -> str:
    """Formats the rows as text, a block for each sweep."""
    way = header["way"]
    sizes = ", ".join(f"{name} {value}" for name, value in header["shape"].items())
    lines = [machine_line(header), f"repeats: {header['repeats']}; workload {header['workload']}; {sizes}"]
    for sweep, field in SWEEPS.items():
        lines.append(f"\n{sweep:>8} {'dense ms':>10} {way + ' ms':>22} {'of dense':>8}")
        for row in rows:
            if row["sweep"] != sweep:
                continue
            if row["row"] == "size":
                times = f"{row[DENSE]['median']:>10.2f} {row[way]['median']:>22.2f}"
                lines.append(f"{row[field]:>8} {times} {row['to_dense']:>8.2f}")
            else:
                what = f"exponent of {FITTED_FROM} tokens and more"
                what = what if sweep == "tokens" else "most experts to fewest"
                lines.append(f"{what}: {way} {row[way]:.3f}, dense {row[DENSE]:.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rows and returns the exit status."""
    parser = benchmark_parser(__doc__, repeats=10)
    parser.add_argument("--kernel", help="kernel of grouped products; default: the first that the platform has")
    parser.add_argument("--workload", default="uniform", help=f"one of {', '.join(WORKLOADS)}; default: uniform")
    options = parser.parse_args(arguments)

    def measure() -> tuple[Row, list[Row]]:
        kernels = available(jax.default_backend())
        kernel = options.kernel or kernels[0]
        require_name(kernel, kernels, "--kernel")
        require_name(options.workload, WORKLOADS, "--workload")
        way = f"dropless-{kernel}"
        rows: list[Row] = []
        for sweep, shapes in sweep_shapes().items():
            rows += sweep_rows(sweep, shapes, way, options.workload, options.repeats)
        header = header_row(repeats=options.repeats, way=way, workload=options.workload, shape=SHAPE._asdict())
        return header, rows

    return run_benchmark("scaling", options, measure, table)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
