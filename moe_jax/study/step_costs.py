"""The cost of a training step in seconds and joules, measured apart from training, models by turns."""

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from moe_jax.configuration import require
from moe_jax.data.pipeline import load_text
from moe_jax.runtime.files import write_whole
from moe_jax.study import provenance
from moe_jax.study.energy import EnergyCounter, energy_counter
from moe_jax.study.sweep import run_name
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import compile_steps
from moe_jax.training.mesh import make_mesh, process_batch
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.state import place_state

TURN_SECONDS = 0.5


def measure_step_costs(configs: Sequence[TrainConfig], path: Path, turns: int = 9) -> None:
    """Measures and writes the cost of a step of each configuration, which `read_study` adds to the rows of their runs.

    Models take turns, so that a machine whose speed drifts is as fast for one as for another, and nothing else should
    run beside it. A turn is as many steps as take half a second or more. What `path` already holds of the same runs
    stays as it is: delete the file to measure anew.

    The file has `host`, the energy `counter`'s name (None without one), and `models`: by name {"run", "seconds",
    "joules"}, whose step it was, and medians over turns; the joules are those of all that the counter sees.

    Args:
      configs: runs; of each name the first one's step.
      path: a JSON file.
      turns: that count.

    Raises:
      ConfigError: a run has a teacher, whose cost would be missing.
    """
    by_name: dict[str, TrainConfig] = {}
    for config in configs:
        by_name.setdefault(config.name, config)
        require(config.distillation is None, "distillation", config.distillation, "None, to time a step by itself")
    runs = {name: run_name(config) for name, config in by_name.items()}
    known = json.loads(path.read_text())["models"] if path.exists() else {}
    if {name: cost["run"] for name, cost in known.items()} == runs:
        return
    steps = {name: _training_step(config) for name, config in tqdm(by_name.items(), "Compiling steps", delay=2)}
    counter = energy_counter(jax.default_backend())
    repeats = {name: _steps_of_turn(step) for name, step in steps.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in tqdm(range(turns), "Timing steps", delay=2):
        for name, step in steps.items():
            found[name].append(_turn(step, repeats[name], counter))
    models = {name: {"run": runs[name]} | _medians(costs, counter) for name, costs in found.items()}
    report = {"host": provenance.host(), "counter": counter and counter.name, "turns": turns, "models": models}
    write_whole(path, json.dumps(report, indent=1) + "\n")


def _training_step(config: TrainConfig) -> Callable[[], None]:
    """Compiles one step of training on the next batch, the reading of the batch included."""
    mesh = make_mesh(config.mesh)
    optimizer, schedule = make_optimizer(config.optimizer, config.steps), make_schedule(config.optimizer, config.steps)
    state, batches = place_state(config, optimizer, mesh), load_text(config.data).train_batches(config.seed)
    train_step, _ = compile_steps(config, optimizer, schedule, state, process_batch(next(batches), mesh), mesh)

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, process_batch(next(batches), mesh))
        jax.block_until_ready((state, metrics))

    return step


def _steps_of_turn(step: Callable[[], None]) -> int:
    """Counts the steps that take TURN_SECONDS, after some that fill caches."""
    _turn(step, 2, None)
    seconds, _ = _turn(step, 2, None)
    return math.ceil(TURN_SECONDS / seconds)


def _turn(step: Callable[[], None], repeats: int, counter: EnergyCounter | None) -> tuple[float, float]:
    """Measures the seconds and joules per step over `repeats` steps, after one more; NaN joules without a counter."""
    step()
    before, started = counter.joules() if counter else math.nan, time.perf_counter()
    for _ in range(repeats):
        step()
    seconds = time.perf_counter() - started
    joules = counter.joules() - before if counter else math.nan
    return seconds / repeats, joules / repeats


def _medians(costs: Sequence[tuple[float, float]], counter: EnergyCounter | None) -> dict[str, Any]:
    seconds, joules = (statistics.median(values) for values in zip(*costs, strict=True))
    return {"seconds": seconds, "joules": joules if counter else None}
