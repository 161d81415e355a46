"""Benchmark of a whole training step: sparse, dense with equal active FLOPs, and transformers' Mixtral.

    python -m experiments.benchmarks.train_step                  # minutes, with nothing else running
    python -m experiments.benchmarks.train_step --first-step     # also times the first step of a fresh process
    python -m experiments.benchmarks.train_step --profile sparse

The models are a decoder with Mixtral's routing in every layer, dropless, trained with AdamW in float32; its dense twin,
K times as wide as an expert; and MixtralForCausalLM of the same shape on torch, with both of its implementations of
experts, torch's own attention and the faster of its implementations of AdamW. Nothing is timed unless ours and theirs
have equally many parameters. All take turns in one process on the same tokens, and numbers are medians over turns. Our
step includes the routing metrics. No model has a balance loss, and no gradient is clipped. Run nothing else beside it:
see `moe_layer`.

The first step is that of the laptop preset's `switch-16`, from the start of a process to the end of the step, without a
compilation cache, on a random batch.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from configs.laptop.switch_vs_dense import get_config
from experiments.benchmarks import hugging_face
from experiments.benchmarks.laptop_step import profile_lines, profile_rows, training_step
from experiments.benchmarks.layer_ways import CannotRunError
from experiments.benchmarks.timing import (
    BenchmarkError,
    Row,
    benchmark_parser,
    header_row,
    machine_line,
    ratio,
    run_benchmark,
    take_turns,
)
from moe_jax.accounting.parameters import count_parameters
from moe_jax.configuration import override, require_name
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.training.config import TrainConfig
from moe_jax.training.step import Batch

OURS = ("sparse", "dense")


class ModelShape(NamedTuple):
    """Sizes of a decoder and its batch.

    Attributes:
      layers: number of layers, all sparse.
      model_dim: D.
      heads: H.
      expert_dim: F.
      num_experts: E.
      k: experts per token.
      vocabulary: V.
      batch: B, sequences per step.
      length: S, tokens per sequence.
    """

    layers: int
    model_dim: int
    heads: int
    expert_dim: int
    num_experts: int
    k: int
    vocabulary: int
    batch: int
    length: int


MODELS = {
    "laptop": ModelShape(4, 256, 4, 512, 16, 2, 4096, 16, 256),
    # For tests and trials.
    "tiny": ModelShape(1, 16, 2, 8, 4, 2, 300, 2, 8),
}


def make_config(name: str, shape: ModelShape) -> TrainConfig:
    """Makes the configuration of the `sparse` or the `dense` model."""
    model = {
        "vocab_size": shape.vocabulary,
        "num_layers": shape.layers,
        "model_dim": shape.model_dim,
        "attention": {"heads": shape.heads},
        "ffn_dim": shape.k * shape.expert_dim,
        "ffn": "swiglu",
    }
    if name == "sparse":
        mixture = {"num_experts": shape.num_experts, "k": shape.k, "expert_dim": shape.expert_dim, "router": "top_k"}
        mixture |= {"capacity_factor": None, "execution": "dropless", "losses": {"balance_loss": 0.0}}
        model |= {"moe_layers": tuple(range(shape.layers)), "moe": mixture}
    tokenizer = f"bpe:{shape.vocabulary}"
    data = {"tokenizer": tokenizer, "batch_size": shape.batch, "sequence_length": shape.length}
    optimizer = {"name": "adamw", "clip_norm": None}
    return TrainConfig.from_dict({"name": name, "model": model, "data": data, "optimizer": optimizer})


def draw_batch(config: TrainConfig) -> Batch:
    """Draws a batch of random tokens, each sequence one document, every token with a target."""
    size = config.data.batch_size, config.data.sequence_length
    text = np.random.default_rng(0).integers(0, config.model.vocab_size, (size[0], size[1] + 1), np.int32)
    return {
        "tokens": text[:, :-1],
        "targets": text[:, 1:],
        "positions": np.broadcast_to(np.arange(size[1], dtype=np.int32), size),
        "segment_ids": np.ones(size, np.int32),
        "loss_mask": np.ones(size, bool),
    }


def step_rows(shape: ModelShape, repeats: int, profiled: str | None) -> list[Row]:
    """Times a step of each model, and profiles one of ours.

    Raises:
      BenchmarkError: transformers' model and ours differ in their number of parameters.
    """
    configs = {name: make_config(name, shape) for name in OURS}
    batch = draw_batch(configs["sparse"])
    counts = {name: count_parameters(config.model) for name, config in configs.items()}
    sizes = {name: {"parameters": count.total, "active": count.active} for name, count in counts.items()}
    skipped: list[Row] = []
    ways: dict[str, str] = {}
    peers = {}
    try:
        theirs = hugging_face.make_model(configs["sparse"].model, batch)
        found = {"parameters": theirs.parameters, "active": theirs.parameters - theirs.idle}
        if found != sizes["sparse"]:
            raise BenchmarkError(f"transformers' model has {found}, but ours has {sizes['sparse']}")
        peers = theirs.steps
        sizes |= dict.fromkeys(peers, found)
        ways |= dict.fromkeys(peers, theirs.optimizer)
    except CannotRunError as error:
        skipped = [{"row": "step", "name": name, "skipped": str(error)} for name in hugging_face.IMPLEMENTATIONS]
    works = {name: training_step(config, batch) for name, config in configs.items()}
    spent = take_turns({name: work.run for name, work in works.items()} | peers, repeats)
    seconds = {name: statistics.median(times) for name, times in spent.items()}
    fastest = min(peers, key=seconds.get, default=None)
    rows = []
    for name, times in spent.items():
        row = {"row": "step", "name": name, **sizes[name], "ms": 1000 * seconds[name]}
        row |= {"tokens_per_second": shape.batch * shape.length / seconds[name], "adamw": ways.get(name)}
        row |= {"to_dense": ratio(times, spent["dense"]), "to_hf": fastest and ratio(times, spent[fastest])}
        rows.append(row)
    return rows + skipped + (profile_rows(profiled, works[profiled]) if profiled else [])


# Program of the fresh process; its times are of a clock that all processes share.
FIRST_STEP = """
import json, sys, time
from experiments.benchmarks.train_step import first_step_here
print(json.dumps(first_step_here(json.loads(sys.argv[1]))))
"""


def first_step_here(overrides: Sequence[str]) -> dict[str, float]:
    """Runs a first step; returns the times at which imports, compilation and the step ended."""
    times = {"import": time.time()}
    config = TrainConfig.from_dict(override(get_config("switch-16").to_dict(), overrides))
    work = training_step(config, draw_batch(config))
    times["build and compile"] = time.time()
    work.run()
    return times | {"step": time.time()}


def first_step_row(overrides: Sequence[str] = ()) -> Row:
    """Times a fresh process to the end of its first step, in total and by consecutive parts.

    Args:
      overrides: overrides of the preset's fields, as `key=value`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    command = [sys.executable, "-c", FIRST_STEP, json.dumps(list(overrides))]
    started = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the first step failed: {done.stderr.strip().splitlines()[-1]}")
    times = json.loads(done.stdout.splitlines()[-1])
    ends = [started, *times.values()]
    parts = dict(zip(times, np.diff(ends).tolist(), strict=True))
    return {"row": "first step", "model": "switch-16", "seconds": ends[-1] - started, "parts": parts}


def table(header: Row, rows: Sequence[Row]) -> str:
    """Formats the rows as text."""
    sizes = ", ".join(f"{name} {value}" for name, value in header["model"].items())
    lines = [
        machine_line(header),
        f"repeats: {header['repeats']}; {sizes}\n",
        f"{'':<14} {'parameters':>11} {'active':>11} {'ms':>9} {'tokens/s':>9} {'of dense':>8} {'of HF':>6}",
    ]
    for row in rows:
        if row["row"] == "first step":
            parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["parts"].items())
            lines.append(f"\nfirst step of {row['model']} in a fresh process: {row['seconds']:.1f} s ({parts})")
        elif "skipped" in row:
            lines.append(f"{row['name']:<14} - {row['skipped']}")
        elif row["row"] == "step":
            speed = f"{row['ms']:>9.1f} {row['tokens_per_second']:>9,.0f} {row['to_dense']:>8.2f}"
            peer = f"{row['to_hf']:>6.2f}" if row["to_hf"] else f"{'-':>6}"
            note = f"  AdamW: {row['adamw']}" if row["adamw"] else ""
            lines.append(f"{row['name']:<14} {row['parameters']:>11,} {row['active']:>11,} {speed} {peer}{note}")
    return "\n".join(lines + profile_lines(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rows and returns the exit status."""
    parser = benchmark_parser(__doc__, repeats=10)
    parser.add_argument("--model", default="laptop", help=f"one of {', '.join(MODELS)}; default: laptop")
    parser.add_argument("--profile", metavar="MODEL", help=f"{' or '.join(OURS)}; adds its time by part of the model")
    parser.add_argument("--first-step", action="store_true", help="also time the first step of a fresh process")
    options = parser.parse_args(arguments)

    def measure() -> tuple[Row, list[Row]]:
        require_name(options.model, MODELS, "--model")
        if options.profile:
            require_name(options.profile, OURS, "--profile")
        first = [first_step_row()] if options.first_step else []
        shape = MODELS[options.model]
        rows = step_rows(shape, options.repeats, options.profile)
        return header_row(repeats=options.repeats, model=shape._asdict()), rows + first

    return run_benchmark("train_step", options, measure, table)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
