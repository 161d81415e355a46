"""Benchmark of the laptop preset's training step: its matmul rate, and sparse models relative to dense.

    python -m experiments.benchmarks.laptop_step              # about two minutes, with nothing else running
    python -m experiments.benchmarks.laptop_step --profile dense

Steps and matrix products take turns in one process, so that a machine that slows down slows all of them. The matmul
rate is the best of a square product and the layer's own product. FLOPs are those of `moe_jax.accounting`. `--profile`
adds the time of one model's step by part of the model.
"""

import collections
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.laptop.switch_vs_dense import get_config
from experiments.benchmarks.timing import Row, benchmark_parser, header_row, machine_line, run_benchmark, take_turns
from moe_jax.accounting.flops import flops_per_token
from moe_jax.configuration import override, require_name
from moe_jax.data.pipeline import load_text
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import compile_steps
from moe_jax.training.mesh import make_mesh
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.state import place_state
from moe_jax.training.step import Batch


class Work(NamedTuple):
    """A unit of work to time: `run` does it once and waits for the end; `text` is its compiled program."""

    run: Callable[[], Any]
    flops: float
    text: str


def text_batch(config: TrainConfig) -> Batch:
    """Returns the first training batch of a run."""
    return next(load_text(config.data).train_batches(config.seed))


def training_step(config: TrainConfig, batch: Batch) -> Work:
    """Compiles a training step that runs on the same batch each time."""
    mesh = make_mesh(config.mesh)
    optimizer, schedule = make_optimizer(config.optimizer, config.steps), make_schedule(config.optimizer, config.steps)
    state, batch = place_state(config, optimizer, mesh), jax.device_put(batch)
    step, _ = compile_steps(config, optimizer, schedule, state, batch, mesh)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    flops = flops_per_token(config.model, config.data.sequence_length).training * tokens_per_step(config)
    return Work(run, flops, step.as_text())


def matmul(rows: int, inner: int, columns: int, dtype: str = "float32") -> Work:
    """Compiles one matrix product."""
    left, right = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return Work(lambda: jax.block_until_ready(product(left, right)), 2.0 * rows * inner * columns, product.as_text())


def profile(work: Work, steps: int = 5) -> dict[str, float]:
    """Measures the milliseconds of a step by kind of operation, largest first."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(steps):
                work.run()
        (path,) = Path(directory).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    kinds = {name: _kind(line) for line in work.text.splitlines() if (name := _instruction(line))}
    spent: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in kinds:
                    spent[kinds[event.name]] += event.duration_ns / 1e6 / steps
    return dict(spent.most_common())


def _instruction(line: str) -> str | None:
    match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
    return match and match.group(1)


def _kind(line: str) -> str:
    """Classifies an instruction of the compiled program by part of the model, and as matrix product or other."""
    name = re.search(r'op_name="([^"]*)"', line)
    if not name:
        return "other: other"
    path = name.group(1)
    parts = ("attention_norm", "feed_forward_norm", "attention", "feed_forward", "router", "moe", "head", "embedding")
    part = next((part for part in parts if f"/{part}/" in path), "loss and optimizer")
    return f"{part}: {'matmul' if 'dot_general' in path else 'other'}"


def profile_rows(name: str, work: Work) -> list[Row]:
    """Returns `profile` as rows of a benchmark."""
    return [{"row": "profile", "name": name, "part": part, "ms": ms} for part, ms in profile(work).items()]


def profile_lines(rows: Sequence[Row]) -> list[str]:
    """Formats the profile among `rows` as lines of text."""
    found = [row for row in rows if row["row"] == "profile"]
    if not found:
        return []
    lines = [f"\n{found[0]['name']}: milliseconds of a step by part of the model"]
    return lines + [f"{row['part']:<28} {row['ms']:8.1f}" for row in found]


def step_rows(configs: dict[str, TrainConfig], repeats: int, profiled: str | None) -> list[Row]:
    """Times each model's step and the products, and profiles one of them: milliseconds and rates."""
    first = next(iter(configs))
    tokens, model = tokens_per_step(configs[first]), configs[first].model
    products = {
        "matmul 2048^3": matmul(2048, 2048, 2048),
        "matmul layer": matmul(tokens, model.model_dim, model.ffn_dim),
    }
    works = {name: training_step(config, text_batch(config)) for name, config in configs.items()} | products
    spent = take_turns({name: work.run for name, work in works.items()}, repeats)
    seconds = {name: statistics.median(times) for name, times in spent.items()}
    rates = {name: works[name].flops / seconds[name] / 1e9 for name in works}
    best = max(rates[name] for name in products)
    rows = []
    for name in works:
        row = {"row": "step", "name": name, "ms": 1000 * seconds[name], "gflops": rates[name]}
        rows.append(row | {"of_matmul": rates[name] / best, "of_first": seconds[name] / seconds[first]})
    return rows + (profile_rows(profiled, works[profiled]) if profiled else [])


def tokens_per_step(config: TrainConfig) -> int:
    """Counts the tokens of a batch."""
    return config.data.batch_size * config.data.sequence_length


def table(header: Row, rows: Sequence[Row]) -> str:
    """Formats the rows as text."""
    steps = [row for row in rows if row["row"] == "step"]
    lines = [
        f"{machine_line(header)}; {header['tokens']} tokens a step",
        f"{'':<14} {'ms':>8} {'GFLOP/s':>8} {'of matmul':>9} {'of ' + steps[0]['name']:>9}",
    ]
    for row in steps:
        rate = f"{row['gflops']:8.1f} {row['of_matmul']:9.1%}"
        lines.append(f"{row['name']:<14} {row['ms']:8.1f} {rate} {row['of_first']:9.2f}")
    return "\n".join(lines + profile_lines(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    parser = benchmark_parser(__doc__, repeats=20)
    parser.add_argument("--models", nargs="+", default=["dense", "switch-4", "switch-16", "switch-64"])
    parser.add_argument("--profile", metavar="MODEL", help="one of the models; adds its time by part of the model")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a field of all models"
    )
    options = parser.parse_args(arguments)

    def measure() -> tuple[Row, list[Row]]:
        if options.profile:
            require_name(options.profile, options.models, "--profile")
        configs = {
            name: TrainConfig.from_dict(override(get_config(name).to_dict(), options.set)) for name in options.models
        }
        rows = step_rows(configs, options.repeats, options.profile)
        return header_row(repeats=options.repeats, tokens=tokens_per_step(configs[options.models[0]])), rows

    return run_benchmark("laptop_step", options, measure, table)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
