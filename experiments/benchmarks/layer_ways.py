"""Ways of running the experts of one layer on a given routing decision: compiled, checked, and ready to be timed.

T tokens, K choices per token, E experts, D model width, F expert width, C capacity.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from experiments.benchmarks.shapes import WORKLOADS, LayerShape
from experiments.benchmarks.timing import BenchmarkError
from moe_jax.experts.execution import Run
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFN_KINDS, feed_forward, products_by
from moe_jax.experts.kernels.choice import available
from moe_jax.experts.oracle import oracle
from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.capacity import capacity_per_expert

# Largest error of a way's results, relative to the largest entry of the reference.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}
CHECKED_TOKENS = 256
DENSE = "dense"
TIGHT = 1.25
MASK_BYTES = 2**30


@struct.dataclass
class Problem:
    """The inputs of a layer of experts.

    Attributes:
      shape: shape of the layer (static).
      x: tokens.
      expert: experts of each token, best first.
      weight: float32 combine weights.
      weights: weights of the experts.
      cotangent: cotangent of the output.
    """

    shape: LayerShape = struct.field(pytree_node=False)
    x: Float[Array, "T D"]
    expert: Int[Array, "T K"]
    weight: Float[Array, "T K"]
    weights: Mapping[str, Float[Array, "E _ _"]]
    cotangent: Float[Array, "T D"]

    def load(self) -> Int[np.ndarray, " E"]:
        """Counts the choices of each expert."""
        return np.bincount(np.asarray(self.expert).ravel(), minlength=self.shape.num_experts)


class Results(NamedTuple):
    """The results of a layer: its output, and gradients by name: `x`, `combine` (weights) and the expert weights."""

    output: Any
    gradients: dict[str, Any]


class Runner(NamedTuple):
    """A way of running a problem's experts.

    Attributes:
      forward: computes the output and waits for it.
      training: computes output and gradients and waits for them.
      array: converts any of these to a NumPy array.
      peak_bytes: returns the peak memory of `training` with its inputs and results; None if it is unknown.
    """

    forward: Callable[[], Any]
    training: Callable[[], Results]
    array: Callable[[Any], np.ndarray]
    peak_bytes: Callable[[], int | None]


class WrongResultError(BenchmarkError):
    """Raised when a way does not compute the mixture, so that its time would mean nothing."""


class CannotRunError(Exception):
    """Raised when a way cannot run a problem or needs too much memory; the message says why."""


class OurWay(NamedTuple):
    """One of this project's ways of running experts.

    Attributes:
      run: the execution.
      capacity: returns C for a problem.
      check_size: raises CannotRunError for a shape and C that are too large, before anything is compiled.
    """

    run: Run
    capacity: Callable[[Problem], int]
    check_size: Callable[[LayerShape, int], None] = lambda shape, capacity: None


def our_ways() -> dict[str, OurWay]:
    """Lists this project's ways by name: `dropless` with each available kernel, `padded` with two capacities."""
    dropless = {
        f"dropless-{kernel}": OurWay(EXECUTIONS["dropless"].with_kernel(kernel), _seat_for_each_token)
        for kernel in available(jax.default_backend())
    }
    return dropless | {
        "padded": OurWay(EXECUTIONS["padded"].run, _busiest),
        f"padded-{TIGHT}": OurWay(EXECUTIONS["padded"].run, _tight),
        "one_hot": OurWay(EXECUTIONS["one_hot"].run, _busiest, _masks_fit),
    }


def draw_problem(shape: LayerShape, workload: str, seed: int = 0) -> Problem:
    """Draws tokens and a cotangent of variance 1, expert weights of variance 1 / fan-in, and the routing of a workload.

    All arrays are on the device and of the shape's type.

    Args:
      shape: shape of the layer.
      workload: a name in WORKLOADS.
      seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    expert = WORKLOADS[workload](rng, shape.tokens, shape.num_experts, shape.k)
    weight = -np.sort(-rng.uniform(0.1, 1.0, expert.shape) / shape.k, axis=1)
    key = jax.random.key(seed)
    sizes = FFN_KINDS[shape.kind].shapes(shape.model_dim, shape.expert_dim)
    weights = {
        name: _normal(jax.random.fold_in(key, i), (shape.num_experts, *size), size[0] ** -0.5, shape.dtype)
        for i, (name, size) in enumerate(sizes.items(), start=2)
    }
    x, cotangent = (
        _normal(jax.random.fold_in(key, i), (shape.tokens, shape.model_dim), 1.0, shape.dtype) for i in range(2)
    )
    return Problem(shape, x, jnp.asarray(expert), jnp.asarray(weight, jnp.float32), weights, cotangent)


def with_fewer_tokens(problem: Problem, workload: str) -> Problem:
    """Draws at most CHECKED_TOKENS tokens, routed by the same workload, for the same experts."""
    shape = problem.shape._replace(tokens=min(problem.shape.tokens, CHECKED_TOKENS))
    few = draw_problem(shape._replace(expert_dim=1), workload, seed=1)
    return few.replace(shape=shape, weights=problem.weights)


def dense_problem(problem: Problem) -> Problem:
    """Makes the dense problem: the same tokens and one network as wide as the K experts of a token together."""
    shape = problem.shape._replace(num_experts=1, k=1, expert_dim=problem.shape.k * problem.shape.expert_dim)
    alone = draw_problem(shape._replace(tokens=1), "balanced")
    chosen = jnp.zeros((shape.tokens, 1), jnp.int32)
    return Problem(shape, problem.x, chosen, jnp.ones(chosen.shape), alone.weights, problem.cotangent)


def make_runner(name: str, problem: Problem) -> Runner:
    """Compiles one of our ways, or `dense` for a `dense_problem`.

    Raises:
      CannotRunError: it needs more memory than `memory_limit`.
    """
    kind = problem.shape.kind
    if name == DENSE:
        inputs = {"x": problem.x, "weights": dict(problem.weights)}
        return _compile(problem, lambda inputs: _run_dense(inputs["x"], inputs["weights"], kind), **inputs)
    way = our_ways()[name]
    capacity = way.capacity(problem)
    way.check_size(problem.shape, capacity)

    def run(inputs: Any, expert: Int[Array, "T K"]) -> Float[Array, "T D"]:
        assignment = _assign(expert, inputs["combine"], problem.shape.num_experts, capacity)
        return way.run(inputs["x"][None], assignment, inputs["weights"], FFN_KINDS[kind])[0]

    inputs = {"x": problem.x, "combine": problem.weight, "weights": dict(problem.weights)}
    return _compile(problem, run, problem.expert, **inputs)


def drop_rate(problem: Problem, capacity: int) -> float:
    """Computes the share of the choices that are dropped."""
    load = problem.load()
    return float(np.maximum(load - capacity, 0).sum() / load.sum())


def check_runner(name: str, runner: Runner, problem: Problem, capacity: int) -> None:
    """Compares a way's outputs and gradients with the oracle's; gradients of expert weights for each expert.

    Raises:
      WrongResultError: a difference is larger than TOLERANCES.
    """
    output, gradients = runner.training()
    actual = {"output": runner.forward(), "output in training": output} | {
        f"gradient of {what}": gradient for what, gradient in gradients.items()
    }
    actual = {what: runner.array(value) for what, value in actual.items()}
    tolerance = TOLERANCES[problem.shape.dtype]
    expected = {"output": 0.0, "gradient of x": 0.0, "gradient of combine": 0.0}
    # One expert at a time: together they would need E times the memory.
    for e in range(problem.shape.num_experts):
        y, by_x, by_weight, own = _one_expert(problem, jnp.int32(capacity), jnp.int32(e))
        for what, part in zip(expected, (y, by_x, by_weight), strict=True):
            expected[what] = expected[what] + np.asarray(part)
        for weight, wanted in own.items():
            what = f"gradient of {weight}"
            _require_close(actual[what][e], wanted[0], tolerance, f"{name}, {what} of expert {e}")
    expected["output in training"] = expected["output"]
    if name == DENSE:
        del expected["gradient of combine"]
    for what, wanted in expected.items():
        _require_close(actual[what], wanted, tolerance, f"{name}, {what}")


def memory_limit() -> float:
    """Returns the bytes that one way may need: all of the accelerator's, or half of the machine's memory."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _assign(expert: Int[Array, "T K"], weight: Float[Array, "T K"], num_experts: int, capacity: int) -> Assignment:
    """Assigns all tokens as one group."""
    return assign_choices(expert[None], weight[None], jnp.ones((1, *expert.shape), bool), num_experts, capacity)


@jax.jit
def _one_expert(problem: Problem, capacity: Int[Array, ""], e: Int[Array, ""]) -> tuple[Array, Array, Array, Any]:
    """Computes expert e's part of the oracle's output, and the gradients through it, in float32."""

    shape = problem.shape

    def wide(x: Array) -> Array:
        return x.astype(jnp.float32)

    def apply(x: Float[Array, "T D"], weight: Float[Array, "T K"], weights: Any) -> Float[Array, "T D"]:
        assignment = _assign(problem.expert, weight, shape.num_experts, shape.tokens)
        its_own = (assignment.expert == e) & (assignment.seat < capacity)
        expert = jnp.zeros_like(assignment.expert)
        alone = assignment.replace(expert=expert, requested=its_own, num_experts=1)
        return oracle(x[None], alone, weights, FFN_KINDS[shape.kind])[0]

    weights = {name: wide(jax.lax.dynamic_slice_in_dim(w, e, 1)) for name, w in problem.weights.items()}
    y, vjp = jax.vjp(apply, wide(problem.x), problem.weight, weights)
    return y, *vjp(wide(problem.cotangent))


def _require_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
    if actual.shape != expected.shape:
        raise WrongResultError(f"{what}: shape {actual.shape}, expected {expected.shape}")
    error, largest = np.abs(actual - expected).max(), np.abs(expected).max()
    # Written so that NaN fails, too.
    if not error <= tolerance * largest:
        raise WrongResultError(f"{what}: error {error:.3g}, largest entry {largest:.3g}")


def _run_dense(x: Float[Array, "T D"], weights: Any, kind: str) -> Float[Array, "T D"]:
    network = {name: w[0] for name, w in weights.items()}
    return feed_forward(x, network, FFN_KINDS[kind], products_by(jnp.matmul))


def _compile(problem: Problem, run: Callable[..., Float[Array, "T D"]], *rest: Any, **inputs: Any) -> Runner:
    """Compiles `run(inputs, *rest)` and its gradients with respect to the inputs."""

    def train(inputs: Any, cotangent: Float[Array, "T D"], *rest: Any) -> tuple[Float[Array, "T D"], Any]:
        y, vjp = jax.vjp(lambda inputs: run(inputs, *rest), inputs)
        return y, vjp(cotangent)[0]

    exact = problem.shape.dtype == "float32" and jax.default_backend() != "cpu"
    # Accelerators round float32 operands unless told otherwise.
    with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
        forward = jax.jit(run).lower(inputs, *rest).compile()
        training = jax.jit(train).lower(inputs, problem.cotangent, *rest).compile()
    memory = training.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    peak -= memory.alias_size_in_bytes
    if peak > memory_limit():
        raise CannotRunError(f"needs {peak / 2**30:.1f} GiB")

    def results() -> Results:
        y, gradients = jax.block_until_ready(training(inputs, problem.cotangent, *rest))
        own = gradients.pop("weights")
        return Results(y, gradients | own)

    return Runner(
        forward=lambda: jax.block_until_ready(forward(inputs, *rest)),
        training=results,
        array=np.asarray,
        peak_bytes=lambda: peak,
    )


@functools.partial(jax.jit, static_argnames=("size", "scale", "dtype"))
def _normal(key: Array, size: tuple[int, ...], scale: float, dtype: str) -> Float[Array, "..."]:
    return scale * jax.random.normal(key, size, dtype)


def _seat_for_each_token(problem: Problem) -> int:
    return problem.shape.tokens


def _busiest(problem: Problem) -> int:
    """Returns the load of the busiest expert: the smallest capacity that drops nothing."""
    return int(problem.load().max())


def _tight(problem: Problem) -> int:
    shape = problem.shape
    return capacity_per_expert(TIGHT, shape.tokens, shape.k, shape.num_experts)


def _masks_fit(shape: LayerShape, capacity: int) -> None:
    """Raises CannotRunError if GShard's two masks [T, E, C] need more than MASK_BYTES."""
    size = 2 * shape.tokens * shape.num_experts * capacity * jnp.dtype(shape.dtype).itemsize
    if size > MASK_BYTES:
        raise CannotRunError(f"its masks need {size / 2**30:.1f} GiB")
