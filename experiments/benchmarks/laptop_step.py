"""What a training step of the laptop preset costs: dense against the machine's matmul rate, sparse against dense.

    python -m experiments.benchmarks.laptop_step              # about two minutes, with nothing else running
    python -m experiments.benchmarks.laptop_step --profile dense

All steps and the matrix products are timed in turn in one process, so that a machine that slows down slows all of
them. The matmul rate is the best of a square product and the layer's own; FLOPs are those of `moe_jax.accounting`.
`--profile` adds where one model's step spends its time, by part of the model.
"""

import argparse
import collections
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.laptop.switch_vs_dense import get_config
from moe_jax.accounting.flops import flops_per_token
from moe_jax.configuration import override
from moe_jax.data.pipeline import load_text
from moe_jax.host_memory import keep_freed_memory
from moe_jax.study.provenance import git_revision, host, versions
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import compile_steps
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.state import init_state


class Work(NamedTuple):
    """Something to time: `run` does it once and waits for the end; `text` is its compiled program."""

    run: Callable[[], Any]
    flops: float
    text: str


def training_step(config: TrainConfig) -> Work:
    """One step of training on real text."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = init_state(config, optimizer)
    batch = jax.device_put(next(load_text(config.data).train_batches(config.seed)))
    step, _ = compile_steps(config, optimizer, make_schedule(config.optimizer, config.steps), state, batch)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    tokens = config.data.batch_size * config.data.sequence_length
    return Work(run, flops_per_token(config.model, config.data.sequence_length).training * tokens, step.as_text())


def matmul(rows: int, inner: int, columns: int) -> Work:
    """One float32 matrix product."""
    left, right = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return Work(lambda: jax.block_until_ready(product(left, right)), 2.0 * rows * inner * columns, product.as_text())


def median_seconds(works: dict[str, Work], repeats: int) -> dict[str, float]:
    """Median over `repeats` rounds in which each is timed once, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work.run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[2:]) for name, seconds in times.items()}


def profile(work: Work, steps: int = 5) -> dict[str, float]:
    """Milliseconds of a step by kind of operation, the largest first."""
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
    """Part of the model, and whether it is a matrix product, of an instruction of the compiled program."""
    name = re.search(r'op_name="([^"]*)"', line)
    if not name:
        return "other: other"
    path = name.group(1)
    parts = ("attention_norm", "feed_forward_norm", "attention", "feed_forward", "router", "moe", "head", "embedding")
    part = next((part for part in parts if f"/{part}/" in path), "loss and optimizer")
    return f"{part}: {'matmul' if 'dot_general' in path else 'other'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dense", "switch-4", "switch-16", "switch-64"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--profile", metavar="MODEL", help="one of the models")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a field of all models"
    )
    options = parser.parse_args(arguments)
    configs = {
        name: TrainConfig.from_dict(override(get_config(name).to_dict(), options.set)) for name in options.models
    }
    first = configs[options.models[0]]
    tokens = first.data.batch_size * first.data.sequence_length
    products = {
        "matmul 2048^3": matmul(2048, 2048, 2048),
        "matmul layer": matmul(tokens, first.model.model_dim, first.model.ffn_dim),
    }
    works = {name: training_step(config) for name, config in configs.items()} | products
    seconds = median_seconds(works, options.repeats)
    rates = {name: works[name].flops / seconds[name] / 1e9 for name in works}
    best = max(rates[name] for name in products)
    machine = f"{host()['cpu']}, {host()['cores']} cores, {platform.machine()}"
    print(f"{machine}; jax {versions()['jax']}; revision {git_revision()}; {tokens} tokens a step")
    print(f"{'':<14} {'ms':>8} {'GFLOP/s':>8} {'of matmul':>9} {'of ' + options.models[0]:>9}")
    for name in works:
        share, ratio = rates[name] / best, seconds[name] / seconds[options.models[0]]
        print(f"{name:<14} {seconds[name] * 1e3:8.1f} {rates[name]:8.1f} {share:9.1%} {ratio:9.2f}")
    if options.profile:
        print(f"\n{options.profile}: milliseconds of a step by part of the model")
        for kind, milliseconds in profile(works[options.profile]).items():
            print(f"{kind:<28} {milliseconds:8.1f}")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
