"""Benchmark of one layer's experts: every way of running them, relative to a dense network of equal active FLOPs.

    python -m experiments.benchmarks.moe_layer                        # minutes to an hour, with nothing else running
    python -m experiments.benchmarks.moe_layer --shapes laptop --workloads balanced hot --repeats 5
    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.benchmarks.moe_layer    # GPU, memory shared with torch

The ways are
- `dense`, a network K times as wide as an expert;
- ours: `dropless` with each kernel; `padded` with the seats that the busiest expert needs, and with 1.25 times the even
  load, which drops tokens; `one_hot` if its masks fit in memory;
- the experts of Hugging Face transformers on torch, with the same weights.
Each way gets the tokens, their experts and the combine weights. Seats, sorting and moving of tokens are part of its
time.

First, each way's output and gradients are compared with `moe_jax.experts.oracle` on fewer tokens; the benchmark ends if
one differs. Then all take turns in one process: forward, and forward and backward with the gradients of tokens, combine
weights and expert weights. Numbers are medians over turns; ratios are medians of the ratios within a turn.

`of HF` is relative to the faster of transformers' ways. `of matmul` is the rate of the executed active FLOPs over that
of the best square matrix product of the run, in the same type. Memory is that of forward and backward with inputs and
results. Its bound is 1.3 times the dense network's, plus the experts' additional weights and their gradients.

Run nothing else beside it: torch's threads wait for each other, so torch slows down several times on cores that it has
to share, which flatters the other ways.
"""

import itertools
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.benchmarks import hugging_face
from experiments.benchmarks.laptop_step import Work, matmul
from experiments.benchmarks.layer_ways import (
    DENSE,
    TOLERANCES,
    CannotRunError,
    Problem,
    Runner,
    check_runner,
    dense_problem,
    draw_problem,
    drop_rate,
    make_runner,
    our_ways,
    with_fewer_tokens,
)
from experiments.benchmarks.shapes import ACCELERATOR_SHAPES, CPU_SHAPES, SHAPES, WORKLOADS, LayerShape
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
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.runtime.host_memory import keep_freed_memory

WORKLOADS_BY_DEFAULT = ("uniform", "zipf", "hot")
PASSES = ("forward", "training")
# Seconds; a slower way is timed once.
PATIENCE = 20.0
# Sides of the square products that are timed.
SQUARES = {"cpu": (1024, 2048), "gpu": (8192,), "tpu": (8192,)}
MIB = 2**20


def way_names() -> list[str]:
    """Lists the names of all ways."""
    return [DENSE, *our_ways(), *hugging_face.IMPLEMENTATIONS]


def make_runners(names: Sequence[str], problem: Problem) -> tuple[dict[str, Runner], dict[str, str]]:
    """Compiles the ways that can run the problem; returns them, and the reasons of those that cannot."""
    runners: dict[str, Runner] = {}
    reasons: dict[str, str] = {}
    peers = [name for name in names if name in hugging_face.IMPLEMENTATIONS]
    for name in names:
        try:
            if name not in peers:
                runners[name] = make_runner(name, dense_problem(problem) if name == DENSE else problem)
            elif name == peers[0]:
                # Made together because they share their weights.
                made = hugging_face.make_experts(problem)
                runners |= {peer: made[peer] for peer in peers}
        except CannotRunError as error:
            reasons |= dict.fromkeys(peers if name in peers else [name], str(error))
    return runners, reasons


def check_ways(names: Sequence[str], problem: Problem) -> None:
    """Raises WrongResultError if a way that can run the problem differs from the oracle."""
    for name, runner in make_runners(names, problem)[0].items():
        check_runner(name, runner, dense_problem(problem) if name == DENSE else problem, capacity_of(name, problem))


def capacity_of(name: str, problem: Problem) -> int:
    """Returns C of a way; for ways without a capacity, the number of tokens."""
    way = our_ways().get(name)
    return way.capacity(problem) if way else problem.shape.tokens


def measure_case(
    shape: LayerShape, workload: str, names: Sequence[str], squares: Mapping[str, Work], repeats: int
) -> tuple[list[Row], dict[str, float]]:
    """Measures one shape and workload: a row for each way, and the least seconds of each square product."""
    problem = draw_problem(shape, workload)
    check_ways(names, with_fewer_tokens(problem, workload))
    runners, reasons = make_runners(names, problem)
    if DENSE in reasons:
        raise BenchmarkError(f"{DENSE}, which all ways are compared with, {reasons[DENSE]}")
    works = {(name, part): getattr(runner, part) for name, runner in runners.items() for part in PASSES}
    spent = take_turns(works | {(name, "square"): work.run for name, work in squares.items()}, repeats, PATIENCE)
    rows = []
    for name in names:
        row: Row = {"row": "way", "way": name, "busiest": float(problem.load().max() / problem.load().mean())}
        if name in reasons:
            rows.append(row | {"skipped": reasons[name]})
            continue
        row |= {part: pass_row(name, part, spent) for part in PASSES}
        peak = runners[name].peak_bytes()
        row |= {"drop_rate": drop_rate(problem, capacity_of(name, problem)), "peak_mib": peak and peak / MIB}
        rows.append(row)
    add_bound(shape, rows)
    return rows, {name: min(spent[name, "square"]) for name in squares}


def pass_row(name: str, part: str, spent: Mapping[tuple[str, str], Sequence[float]]) -> Row:
    """Summarizes one pass of a way: milliseconds, and its time relative to the dense network and the faster peer."""
    peers = [peer for peer in hugging_face.IMPLEMENTATIONS if (peer, part) in spent]
    fastest = min(peers, key=lambda peer: statistics.median(spent[peer, part]), default=None)
    seconds = spent[name, part]
    return {
        "ms": spread([1000 * s for s in seconds]),
        "to_dense": ratio(seconds, spent[DENSE, part]),
        "to_hf": fastest and ratio(seconds, spent[fastest, part]),
    }


def add_bound(shape: LayerShape, rows: Sequence[Row]) -> None:
    """Adds the memory bound to each row, and the memory of the way relative to it."""
    sizes = FFN_KINDS[shape.kind].shapes(shape.model_dim, shape.expert_dim).values()
    more = (shape.num_experts - shape.k) * sum(map(math.prod, sizes)) * jnp.dtype(shape.dtype).itemsize
    dense = next(row["peak_mib"] for row in rows if row["way"] == DENSE)
    for row in rows:
        row["bound_mib"] = 1.3 * dense + 2 * more / MIB
        row["to_bound"] = row["peak_mib"] / row["bound_mib"] if row.get("peak_mib") else None


def active_flops(shape: LayerShape, part: str) -> float:
    """Counts the active FLOPs of all choices, none dropped; the backward pass costs twice the forward pass."""
    matrices = 3 if FFN_KINDS[shape.kind].gated else 2
    forward = 2.0 * matrices * shape.model_dim * shape.expert_dim * shape.k * shape.tokens
    return forward if part == "forward" else 3 * forward


def measure(
    shapes: Mapping[str, LayerShape], workloads: Sequence[str], names: Sequence[str], repeats: int
) -> tuple[Row, list[Row]]:
    """Measures all shapes and workloads; returns the header and the rows."""
    sides = SQUARES[jax.default_backend()]
    rows: list[Row] = []
    best: dict[str, float] = {}
    for shape_name, shape in shapes.items():
        squares = {f"{side}^3": matmul(side, side, side, shape.dtype) for side in sides}
        for workload in tqdm(workloads, shape_name, delay=2):
            found, least = measure_case(shape, workload, names, squares, repeats)
            rows += [{"shape": shape_name, "dtype": shape.dtype, "workload": workload} | row for row in found]
            rates = [squares[name].flops / seconds for name, seconds in least.items()]
            best[shape.dtype] = max(best.get(shape.dtype, 0.0), *rates)
    for row in rows:
        for part in PASSES if "skipped" not in row else ():
            flops = (1.0 - row["drop_rate"]) * active_flops(shapes[row["shape"]], part)
            row[part]["of_matmul"] = flops / (row[part]["ms"]["median"] / 1000) / best[row["dtype"]]
    sizes = {name: shape._asdict() for name, shape in shapes.items()}
    gflops = {dtype: rate / 1e9 for dtype, rate in best.items()}
    return header_row(repeats=repeats, shapes=sizes, matmul_gflops=gflops), rows


def table(header: Row, rows: Sequence[Row]) -> str:
    """Formats the rows as text, a block for each shape and workload."""
    rates = ", ".join(f"{dtype} {rate:,.0f} GFLOP/s" for dtype, rate in header["matmul_gflops"].items())
    lines = [machine_line(header), f"repeats: {header['repeats']}; best square matrix product: {rates}"]
    one_pass = f"{'ms':>9} {'of dense':>8} {'of HF':>6} {'of matmul':>9}"
    for (shape, workload), block in itertools.groupby(rows, key=lambda row: (row["shape"], row["workload"])):
        first, *others = block
        sizes = ", ".join(f"{name} {value}" for name, value in header["shapes"][shape].items())
        busiest = f"the busiest expert has {first['busiest']:.1f} times the mean load"
        lines.append(f"\n{shape}, {workload}: {busiest}; memory bound {first['bound_mib']:,.0f} MiB; {sizes}")
        lines.append(f"{'':<19} {'forward':^35} | {'forward and backward':^35}")
        lines.append(f"{'way':<19} {one_pass} | {one_pass} | {'dropped':>7} {'MiB':>9} {'of bound':>8}")
        lines += [_line(row) for row in (first, *others)]
    return "\n".join(lines)


def _line(row: Row) -> str:
    if "skipped" in row:
        return f"{row['way']:<19} - {row['skipped']}"
    passes = []
    for part in PASSES:
        found = row[part]
        peer = _or_dash(found["to_hf"], "6.2f")
        passes.append(f"{found['ms']['median']:>9.2f} {found['to_dense']:>8.2f} {peer} {found['of_matmul']:>9.1%}")
    memory = f"{_or_dash(row['peak_mib'], '9,.1f')} {_or_dash(row['to_bound'], '8.2f')}"
    return f"{row['way']:<19} {' | '.join(passes)} | {row['drop_rate']:>7.1%} {memory}"


def _or_dash(value: float | None, form: str) -> str:
    width = int(re.match(r"\d+", form)[0])
    return f"{'-':>{width}}" if value is None else f"{value:>{form}}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rows and returns the exit status."""
    parser = benchmark_parser(__doc__, repeats=10)
    parser.add_argument(
        "--shapes", nargs="+", metavar="NAME", help=f"some of {', '.join(SHAPES)}; default: the platform's"
    )
    accepted = f"some of {', '.join(WORKLOADS)}; default: {' '.join(WORKLOADS_BY_DEFAULT)}"
    parser.add_argument("--workloads", nargs="+", metavar="NAME", default=WORKLOADS_BY_DEFAULT, help=accepted)
    parser.add_argument(
        "--ways", nargs="+", metavar="NAME", help="ways to run; dense is always among them; default: all"
    )
    parser.add_argument("--dtype", help=f"{' or '.join(TOLERANCES)}; default: the shape's own")
    options = parser.parse_args(arguments)

    def run() -> tuple[Row, list[Row]]:
        shapes = options.shapes or (CPU_SHAPES if jax.default_backend() == "cpu" else ACCELERATOR_SHAPES)
        ways = options.ways or way_names()
        given_dtype = [options.dtype] if options.dtype else []
        for field, names, known in (
            ("--shapes", shapes, SHAPES),
            ("--workloads", options.workloads, WORKLOADS),
            ("--ways", ways, way_names()),
            ("--dtype", given_dtype, TOLERANCES),
        ):
            for name in names:
                require_name(name, known, field)
        chosen = {name: SHAPES[name]._replace(dtype=options.dtype or SHAPES[name].dtype) for name in shapes}
        workloads, ways = dict.fromkeys(options.workloads), dict.fromkeys([DENSE, *ways])
        return measure(chosen, list(workloads), list(ways), options.repeats)

    return run_benchmark("moe_layer", options, run, table)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
