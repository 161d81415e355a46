"""All that this project cannot know without an accelerator, in one command of at most nine minutes.

    python -m experiments.accelerator_check              # on a GPU or TPU; writes experiments/results/accelerator/
    python -m experiments.accelerator_check --tiny       # the same parts in small, on a CPU, to see that they run

The parts, in order: the executions with every kernel against the oracle, values and gradients, in float32 and bfloat16;
attention against its definition; one layer of Mixtral's and of DeepSeek's shape, every way of running the experts
relative to a dense network; a training step with 100 million active parameters and its memory; and, for the time that
is left, a dense model and a Switch model trained side by side. A part that fails is reported and the next one runs. The
report is written anew after each part, so that what was measured stays if the machine is taken away.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from configs.gpu import switch_vs_dense as switch_gpu
from configs.laptop import switch_vs_dense as switch_laptop
from experiments.benchmarks import moe_layer, train_step
from experiments.benchmarks.laptop_step import Work, matmul, training_step
from experiments.benchmarks.layer_ways import (
    TOLERANCES,
    CannotRunError,
    WrongResultError,
    check_runner,
    draw_problem,
    make_runner,
    our_ways,
)
from experiments.benchmarks.shapes import SHAPES, LayerShape
from experiments.benchmarks.timing import header_row, machine_line, take_turns
from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.configuration import override
from moe_jax.layers.attention.attend import attend
from moe_jax.layers.attention.masks import attention_mask, key_ranges
from moe_jax.reports.document import Document
from moe_jax.reports.tables import markdown_rows
from moe_jax.runtime.files import read_json_lines
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import train
from moe_jax.training.termination import TerminatedError, noted_termination

SECONDS = 9 * 60.0
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of all parts.

    Attributes:
      seconds: of the whole check.
      checked: shape of the layer that is compared with the oracle.
      layers: names in SHAPES of the layers that are timed.
      workloads: their routing, names in WORKLOADS.
      repeats: rounds of timing.
      step: shape of the model whose step is timed.
      dtype: compute type of that model.
      side: side of the square product that rates are compared with.
      length: tokens of the sequences whose attention is checked.
      trained: the preset of `switch_vs_dense`.
      sets: assignments for its models.
    """

    seconds: float
    checked: LayerShape
    layers: tuple[str, ...]
    workloads: tuple[str, ...]
    repeats: int
    step: train_step.ModelShape
    dtype: str
    side: int
    length: int
    trained: Callable[[str], ConfigDict]
    sets: tuple[str, ...] = ()


FULL = Scale(
    seconds=SECONDS,
    checked=LayerShape(512, 1024, 8, 2, 1024, "swiglu"),
    layers=("mixtral-gpu", "deepseek-gpu"),
    workloads=("balanced", "hot"),
    repeats=3,
    step=train_step.ModelShape(12, 768, 12, 1536, 16, 2, 8192, 16, 1024),
    dtype="bfloat16",
    side=8192,
    length=1024,
    trained=switch_gpu.get_config,
    # Preparing the larger corpus would take the time that there is.
    sets=("data.corpus=python_source", "data.tokenizer=bytes", "model.vocab_size=257", "eval_every=50"),
)
TINY = Scale(
    seconds=60.0,
    checked=SHAPES["tiny"],
    layers=("tiny",),
    workloads=("balanced",),
    repeats=1,
    step=train_step.MODELS["tiny"],
    dtype="float32",
    side=64,
    length=32,
    trained=switch_laptop.get_quick_config,
    sets=("data.tokenizer=bytes", "model.vocab_size=257", "eval_every=2", "eval_batches=1"),
)


def check_executions(scale: Scale, seconds: float) -> Iterator[str]:
    """Compares every execution and kernel with the oracle: output, and gradients for each expert."""
    rows = [["way", *TOLERANCES]]
    for name in our_ways():
        cells = []
        for dtype in TOLERANCES:
            problem = draw_problem(scale.checked._replace(dtype=dtype), "uniform")
            try:
                check_runner(name, make_runner(name, problem), problem, our_ways()[name].capacity(problem))
                cells.append("equal")
            except (CannotRunError, WrongResultError) as error:
                cells.append(f"**{error}**")
        rows.append([name, *cells])
    yield markdown_rows(rows, right=[])
    allowed = ", ".join(f"{tolerance:g} in {dtype}" for dtype, tolerance in TOLERANCES.items())
    yield f"Equal: no error is larger than a share of the largest entry that is expected, {allowed}."


def check_attention(scale: Scale, seconds: float) -> Iterator[str]:
    """Compares attention with its definition in float64, values and gradients."""
    rng = np.random.default_rng(0)
    length, heads, kv_heads, width = scale.length, 4, 2, 64
    shapes = [(2, length, heads, width), (2, length, kv_heads, width), (2, length, kv_heads, width)]
    inputs = [rng.normal(size=shape) for shape in shapes]
    cotangent = rng.normal(size=shapes[0])
    segments = jnp.ones((2, length), jnp.int32)
    rows = [["attention", "type", "largest error", "of the gradients"]]
    for window in (None, max(length // 8, 1)):
        mask, ranges = attention_mask(segments, True, window), key_ranges(length, length, True, window)
        expected = _attention_by_definition(*inputs, np.asarray(mask), cotangent)
        for dtype in TOLERANCES:

            @jax.jit
            def value_and_gradients(
                inputs: Sequence[Array], cotangent: Array, mask: Array = mask, ranges: object = ranges
            ) -> tuple[Array, Sequence[Array]]:
                y, vjp = jax.vjp(lambda *inputs: attend(*inputs, mask, None, ranges), *inputs)
                return y, vjp(cotangent)

            with jax.default_matmul_precision("highest"):
                cast = [jnp.asarray(x, dtype) for x in inputs]
                y, gradients = value_and_gradients(cast, jnp.asarray(cotangent, dtype))
            errors = [_error(actual, wanted) for actual, wanted in zip((y, *gradients), expected, strict=True)]
            name = "causal" if window is None else f"causal, window {window}"
            rows.append([name, dtype, f"{errors[0]:.2e}", f"{max(errors[1:]):.2e}"])
    yield markdown_rows(rows, right=[2, 3])
    yield "Errors are relative to the largest entry of the definition, which NumPy computes in float64."


def time_layers(scale: Scale, seconds: float) -> Iterator[str]:
    """Times every way of running the experts of one layer, relative to a dense network of equal active FLOPs."""
    until = time.perf_counter() + seconds
    for name in scale.layers:
        for workload in scale.workloads:
            if time.perf_counter() > until:
                yield f"{name}, {workload}: no time was left."
                continue
            try:
                header, rows = moe_layer.measure({name: SHAPES[name]}, [workload], moe_layer.way_names(), scale.repeats)
                yield f"```\n{moe_layer.table(header, rows)}\n```"
            except Exception as error:
                yield f"{name}, {workload}: {_in_words(error)}"


def time_step(scale: Scale, seconds: float) -> Iterator[str]:
    """Times a whole training step, sparse and dense, and says what memory it needs."""
    rate = scale.side**3 * 2 / min(take_turns({"square": _square(scale).run}, scale.repeats)["square"])
    rows = [["model", "parameters", "active", "ms a step", "tokens/s", "of the square product's rate", "peak GiB"]]
    for name in train_step.OURS:
        config = train_step.make_config(name, scale.step)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=scale.dtype))
        tokens, counts = config.data.batch_size * config.data.sequence_length, count_parameters(config.model)
        work = training_step(config, train_step.draw_batch(config))
        step = statistics.median(take_turns({name: work.run}, scale.repeats)[name])
        flops = flops_per_token(config.model, config.data.sequence_length).training * tokens
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        sizes = [f"{counts.total / 1e6:,.1f} M", f"{counts.active / 1e6:,.1f} M"]
        times = [f"{1000 * step:,.1f}", f"{tokens / step:,.0f}", f"{flops / step / rate:.1%}"]
        rows.append([name, *sizes, *times, f"{peak / GIB:.2f}" if peak else "-"])
    yield markdown_rows(rows)
    size = f"{scale.step.batch} sequences of {scale.step.length} tokens"
    yield (
        f"{scale.dtype}, AdamW, {size}. The rate is that of the active FLOPs, relative to a product of two matrices of "
        f"{scale.side} x {scale.side}, {rate / 1e12:,.1f} TFLOP/s. The peak is that of the process so far."
    )


def train_models(scale: Scale, seconds: float) -> Iterator[str]:
    """Trains a dense model and a Switch model for half of the time each, and compares their losses at equal steps."""
    losses: dict[str, dict[int, float]] = {}
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("dense", "switch-16"):
            values = override(scale.trained(name).to_dict(), scale.sets)
            config, workdir = TrainConfig.from_dict(values), Path(folder) / name
            _train_for(seconds / 2, config, workdir)
            lines = read_json_lines(workdir / "metrics.jsonl")
            losses[name] = {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}
            clock = read_json_lines(workdir / "timing.jsonl")[-1]
            tokens = config.data.batch_size * config.data.tokens_per_example
            speeds[name] = clock["step"] * tokens / clock["seconds"] if clock["seconds"] else 0.0
    steps = sorted(set.intersection(*(set(found) for found in losses.values())))
    rows = [["step", *losses]]
    rows += [[f"{step:,}", *(f"{found[step]:.4f}" for found in losses.values())] for step in steps]
    yield markdown_rows(rows)
    told = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    yield f"Validation loss in nats per token, one seed, of {config.data.corpus} in bytes. Tokens a second: {told}."


PARTS: dict[str, tuple[float, Callable[[Scale, float], Iterator[str]]]] = {
    "Executions and kernels against the oracle": (0.25, check_executions),
    "Attention against its definition": (0.1, check_attention),
    "One layer of experts": (0.6, time_layers),
    "A training step": (0.5, time_step),
    "Dense against Switch": (0.85, train_models),
}
"""The parts by title: the share of the time that is left then which each may take, and the part itself."""


def _train_for(seconds: float, config: TrainConfig, workdir: Path) -> None:
    """Trains for so long, compilation included, as if a cluster then asked the process to stop."""
    asking = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    # A signal that comes while the text is loaded counts, too.
    with noted_termination(), contextlib.suppress(TerminatedError):
        asking.start()
        try:
            train(config, workdir, progress=False)
        finally:
            asking.cancel()
            asking.join()


def _attention_by_definition(
    query: Float[np.ndarray, "B S H N"],
    key: Float[np.ndarray, "B S K N"],
    value: Float[np.ndarray, "B S K N"],
    mask: np.ndarray,
    cotangent: Float[np.ndarray, "B S H N"],
) -> tuple[np.ndarray, ...]:
    """Computes output and gradients of query, key and value from softmax's definition."""
    repeats = query.shape[2] // key.shape[2]
    keys, values = (np.repeat(x, repeats, axis=2) for x in (key, value))
    scale = query.shape[-1] ** -0.5
    logits = np.where(mask, np.einsum("bshn,brhn->bhsr", query, keys) * scale, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    to_weights = np.einsum("bshn,brhn->bhsr", cotangent, values)
    to_logits = weights * (to_weights - (weights * to_weights).sum(axis=-1, keepdims=True)) * scale

    def by_kv_head(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], key.shape[2], repeats, -1).sum(axis=3)

    return (
        np.einsum("bhsr,brhn->bshn", weights, values),
        np.einsum("bhsr,brhn->bshn", to_logits, keys),
        by_kv_head(np.einsum("bhsr,bshn->brhn", to_logits, query)),
        by_kv_head(np.einsum("bhsr,bshn->brhn", weights, cotangent)),
    )


def _error(actual: Array, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


def _square(scale: Scale) -> Work:
    return matmul(scale.side, scale.side, scale.side, scale.dtype)


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"**failed: {type(error).__name__}: {lines[0][:300]}**"


def device_name() -> str:
    """Returns the name of the first device, as it can stand in the name of a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", jax.devices()[0].device_kind).strip("-")


def run_parts(scale: Scale, path: Path) -> int:
    """Runs all parts, writes the report to `path` after each, and returns the number of those that failed."""
    ends, failed = time.perf_counter() + scale.seconds, 0
    document = Document(f"Accelerator check: {jax.devices()[0].device_kind}")
    document.add(
        machine_line(header_row()),
        f"Command: `python -m experiments.accelerator_check`, {scale.seconds:.0f} s at most.",
    )
    for title, (share, part) in PARTS.items():
        started = time.perf_counter()
        left = ends - started
        print(f"{title}, {share * left:.0f} of {left:.0f} s", file=sys.stderr, flush=True)
        document.add(f"## {title}")
        if left < 0.02 * scale.seconds:
            document.add("No time was left.")
            continue
        try:
            for block in part(scale, share * left):
                document.add(block)
        except Exception as error:
            failed += 1
            document.add(_in_words(error))
        document.add(f"{time.perf_counter() - started:.0f} s.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document.text(), encoding="utf-8")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check, prints its report, and returns the exit status: 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    default = Path(__file__).parent / "results" / "accelerator"
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=default, help=f"default: {default}")
    options = parser.parse_args(arguments)
    if jax.default_backend() == "cpu" and not options.tiny:
        print("accelerator_check: there is no accelerator; accepted: a GPU or a TPU, or --tiny", file=sys.stderr)
        return 2
    path = options.output / f"{device_name()}.md"
    failed = run_parts(TINY if options.tiny else FULL, path)
    print(path.read_text(encoding="utf-8"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
