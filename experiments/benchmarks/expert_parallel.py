"""Benchmark of expert parallelism: bytes sent between devices, and a layer's time relative to one device.

    python -m experiments.benchmarks.expert_parallel --repeats 10     # minutes, with nothing else running
    python -m experiments.benchmarks.expert_parallel --json

Bytes: those that one device sends for each of its tokens in the forward pass of a layer in float32 on eight devices,
counted in the compiled program. `least` counts k rows to the experts and k rows back, without those to experts on the
token's own device; `ratio` is sent over least. Other types scale both alike. There are two rows where the bytes depend
on the load.

Times: a layer forward and backward, with the same tokens and experts on each device for any number of devices. The
devices are forced CPU devices of one machine, which does P times the work for P of them. The overhead is the time over
P times that of one device without a strategy: the median (least, most) over repeats in which all take turns. It is the
cost of dividing and joining if links cost nothing, not a speed. It is below 1 if one device alone leaves cores idle.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float
from tqdm import tqdm

from experiments.benchmarks.timing import (
    Row,
    benchmark_parser,
    header_row,
    machine_line,
    run_benchmark,
    spread,
    take_turns,
)
from moe_jax.accounting.communication import Collective, collectives, least_bytes_per_token
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.routing.statistics import METRICS, values
from moe_jax.routing.top_k import TopK
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.runtime.mesh import BY_TOKEN
from moe_jax.training.config import MeshConfig
from moe_jax.training.mesh import make_mesh, shardings

DEVICES = 8


class Shape(NamedTuple):
    """Sizes of a layer: S tokens on each device, D, F, E experts (on each device in the timings), k."""

    tokens: int
    model_dim: int
    expert_dim: int
    num_experts: int
    k: int


class Way(NamedTuple):
    """The execution and the capacity factor that a strategy is run with."""

    execution: str
    capacity_factor: float | None


# Layers of published models, whose bytes are counted; they are compiled but not run.
SHAPES = {
    "Switch-Base-128": Shape(2048, 768, 3072, 128, 1),
    "Mixtral-8x7B": Shape(2048, 4096, 14336, 8, 2),
    "OLMoE-1B-7B": Shape(2048, 2048, 1024, 64, 8),
    "DeepSeek-V3": Shape(2048, 7168, 2048, 256, 8),
}
TIMED = Shape(512, 256, 512, 4, 2)
WAYS = {"all_to_all": Way("padded", 1.25), "gather": Way("padded", 1.25), "dropless": Way("dropless", None)}
# Branch of the compiled program -> load under which it runs: `dropless` has one for buffers that overflow.
LOADS = {(): "any", (0,): "near even", (1,): "uneven"}


def make_layer(strategy: str, shape: Shape) -> MoE:
    """Makes a layer of `shape` with top-k routing, run by `strategy` on a mesh."""
    config = MoEConfig(
        num_experts=shape.num_experts,
        expert_dim=shape.expert_dim,
        router=TopK(renormalize=shape.k > 1),
        k=shape.k,
        capacity_factor=WAYS[strategy].capacity_factor,
        ffn="swiglu",
        execution=WAYS[strategy].execution,
        parallel=ParallelConfig(strategy),
    )
    return MoE(config)


def forward_collectives(strategy: str, shape: Shape) -> list[Collective]:
    """Lists the collectives of a layer's forward pass on DEVICES devices; compiles it without making an array."""
    layer, mesh = make_layer(strategy, shape), make_mesh(MeshConfig(expert=DEVICES))
    x = jax.ShapeDtypeStruct((DEVICES, shape.tokens, shape.model_dim), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    placed = shardings(params, layer.config.parameters(shape.model_dim), mesh), NamedSharding(mesh, BY_TOKEN)
    with jax.set_mesh(mesh):
        forward = jax.jit(lambda params, x: layer.apply({"params": params}, x), in_shardings=placed)
        return collectives(forward.lower(params, x).compile().as_text())


def sent_by_load(found: Sequence[Collective]) -> dict[str, float]:
    """Sums the bytes that a device sends, by the load under which it does: `any`, or `near even` and `uneven`."""
    branches = {one.branches for one in found if one.branches} or {()}
    return {
        LOADS[branch]: sum(one.bytes_sent for one in found if one.branches in ((), branch))
        for branch in sorted(branches)
    }


def byte_rows() -> list[Row]:
    """Counts the bytes per token of each shape and strategy."""
    rows = []
    for name, shape in tqdm(SHAPES.items(), "Counting bytes", delay=2):
        least = least_bytes_per_token(shape.k, shape.model_dim, 4, DEVICES)
        for strategy in WAYS:
            for load, sent in sent_by_load(forward_collectives(strategy, shape)).items():
                sent /= shape.tokens
                row = {"row": "bytes", "layer": name, "strategy": strategy, "load": load}
                rows.append(row | {"sent": sent, "least": least, "ratio": sent / least})
    return rows


@functools.cache
def draw_params(shape: Shape) -> Any:
    """Draws the parameters of a layer, which do not depend on its strategy."""
    x = jnp.zeros((1, shape.tokens, shape.model_dim))
    return jax.jit(make_layer("gather", shape).init)(jax.random.key(1), x)["params"]


def layer_step(strategy: str, shape: Shape, devices: int) -> Callable[[], Any]:
    """Compiles a function that computes a layer's gradients on random tokens and returns whether buffers overflowed."""
    shape = shape._replace(num_experts=devices * shape.num_experts)
    layer, mesh = make_layer(strategy, shape), make_mesh(MeshConfig(expert=devices))
    x, cotangent = jax.random.normal(jax.random.key(0), (2, devices, shape.tokens, shape.model_dim))
    params = draw_params(shape)
    by_token = NamedSharding(mesh, BY_TOKEN)
    placed = shardings(params, layer.config.parameters(shape.model_dim), mesh), by_token, by_token

    def total(
        params: Any, x: Float[Array, "P S D"], cotangent: Float[Array, "P S D"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        y, sown = layer.apply({"params": params}, x, mutable=[METRICS])
        return jnp.sum(y * cotangent), values(sown[METRICS]).get("buffers_overflowed", jnp.float32(0.0))

    with jax.set_mesh(mesh):
        gradients = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True), in_shardings=placed)
        arguments = jax.device_put((params, x, cotangent), placed)
        step = gradients.lower(*arguments).compile()
    return lambda: bool(jax.block_until_ready(step(*arguments))[1])


def time_rows(repeats: int) -> list[Row]:
    """Times each strategy on 1, 2, 4, ... devices: milliseconds, and the overhead relative to one device."""
    counts = [1 << i for i in range(DEVICES.bit_length())]
    works = [(strategy, devices) for strategy in WAYS for devices in counts]
    steps = {work: layer_step(work[0], TIMED, work[1]) for work in tqdm(works, "Compiling", delay=2)}
    overflowed = {work: step() for work, step in steps.items()}
    seconds = take_turns(steps, repeats)
    rows = []
    for strategy, devices in works:
        spent, alone = seconds[strategy, devices], seconds[strategy, 1]
        overhead = [several / (devices * one) for several, one in zip(spent, alone, strict=True)]
        load = "uneven" if overflowed[strategy, devices] else "near even"
        row = {"row": "time", "strategy": strategy, "devices": devices, "load": load}
        rows.append(row | {"ms": spread([1000 * s for s in spent]), "overhead": spread(overhead)})
    return rows


def table(header: Row, rows: Sequence[Row]) -> str:
    """Formats the rows as text."""
    lines = [
        f"{machine_line(header)}; {header['host']['devices']} forced devices",
        f"\n{'bytes per token, forward':<24} {'strategy':<11} {'load':<10} {'sent':>10} {'least':>10} {'ratio':>7}",
    ]
    for row in rows:
        if row["row"] == "bytes":
            names = f"{row['layer']:<24} {row['strategy']:<11} {row['load']:<10}"
            lines.append(f"{names} {row['sent']:>10,.0f} {row['least']:>10,.0f} {row['ratio']:>7.3f}")
    shape = ", ".join(f"{name} {value}" for name, value in header["timed"].items())
    lines.append(f"\nforward and backward; repeats: {header['repeats']}; each device: {shape}")
    lines.append(f"{'strategy':<11} {'devices':>7} {'load':<10} {'ms':>8} {'overhead (least, most)':>26}")
    for row in rows:
        if row["row"] == "time":
            overhead = "{median:.2f} ({least:.2f}, {most:.2f})".format(**row["overhead"])
            names = f"{row['strategy']:<11} {row['devices']:>7} {row['load']:<10}"
            lines.append(f"{names} {row['ms']['median']:>8.1f} {overhead:>26}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rows and returns the exit status."""
    options = benchmark_parser(__doc__, repeats=10).parse_args(arguments)

    def measure() -> tuple[Row, list[Row]]:
        rows = byte_rows() + time_rows(options.repeats)
        return header_row(repeats=options.repeats, timed=TIMED._asdict()), rows

    return run_benchmark("expert_parallel", options, measure, table)


def force_devices() -> None:
    """Makes jax see DEVICES CPU devices and no others; call it before jax looks for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)


if __name__ == "__main__":
    keep_freed_memory()
    force_devices()
    sys.exit(main())
