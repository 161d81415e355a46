"""Experts on a mesh: one `shard_map`, in which a strategy brings tokens to their experts and back.

G groups, S tokens of a group, E experts, D model width, F expert width, O width of results (D,
but of linear experts).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from moe_jax.configuration import require
from moe_jax.experts.apply import Combine, apply_with
from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.parallel.all_to_all import all_to_all
from moe_jax.experts.parallel.dropless import dropless, overflows
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.experts.parallel.gather import gather
from moe_jax.experts.parallel.ragged import ragged
from moe_jax.experts.parallel.strategy import ParallelConfig, Strategy, choose_strategy
from moe_jax.experts.run import Execution, make_execution
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import AXES, BY_TOKEN, platform_of, token_shards

Metrics = dict[str, Float[Array, ""]]


def apply_on_mesh(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    execution: str,
    combine: Combine,
    mesh: AbstractMesh,
    config: ParallelConfig,
    rows_per_token: float,
    kernel: KernelChoice = "auto",
) -> tuple[Float[Array, "G S O"], Metrics]:
    """`apply_experts` on `mesh`, with its numbers, and `buffers_overflowed` where the strategy has such buffers.

    `rows_per_token` is for the choice of a strategy, see `choose_strategy`; `kernel` for grouped products, see
    `choose_kernel`.

    Groups are divided over the axes data, fsdp and expert, experts over expert, their width over tensor.

    Raises:
      ConfigError: the mesh lacks an axis, or does not divide experts, their width or the groups.
    """
    divided = 0 if kind.linear else weights["up"].shape[-1]
    check_mesh(mesh, assignment.num_experts, divided, assignment.num_groups)
    devices = mesh.shape["expert"]
    strategy = choose_strategy(config, execution, platform_of(mesh), devices, rows_per_token)
    exchange = Exchange(devices, config.wire)

    def on_device(
        x: Float[Array, "G S D"], assignment: Assignment, weights: Weights
    ) -> tuple[Float[Array, "G S O"], Metrics]:
        run = functools.partial(_run_part, bind(strategy, exchange, execution, config.slack, kernel))
        y = apply_with(run, x, assignment, weights, kind, combine)
        metrics = {}
        if strategy == "dropless":
            taken = overflows(assignment, devices, config.slack)
            metrics["buffers_overflowed"] = taken.astype(jnp.float32)
        return y, metrics

    in_specs = (BY_TOKEN, BY_TOKEN, {name: weight_spec(name) for name in weights})
    return jax.shard_map(on_device, in_specs=in_specs, out_specs=(BY_TOKEN, P()))(x, assignment, weights)


def bind(strategy: Strategy, exchange: Exchange, execution: str, slack: float, kernel: KernelChoice) -> Execution:
    """A strategy as a way of running experts, of one device's tokens and one device's experts."""
    if strategy == "all_to_all":
        return functools.partial(all_to_all, exchange=exchange)
    if strategy == "dropless":
        return functools.partial(dropless, exchange=exchange, slack=slack, kernel=kernel)
    if strategy == "gather":
        return functools.partial(gather, exchange=exchange, execution=make_execution(execution, kernel))
    return functools.partial(ragged, exchange=exchange, kernel=kernel)


def check_mesh(mesh: AbstractMesh, num_experts: int, expert_dim: int, num_groups: int) -> None:
    """Raises ConfigError where `mesh` cannot divide what it has to."""
    for axis in AXES:
        require(
            axis in mesh.shape, "mesh", tuple(mesh.shape), f"a mesh with axes {', '.join(AXES)}; it has no {axis!r}"
        )
    experts, width, shards = mesh.shape["expert"], mesh.shape["tensor"], token_shards(mesh)
    require(num_experts % experts == 0, "mesh.expert", experts, f"a divisor of num_experts ({num_experts})")
    require(expert_dim % width == 0, "mesh.tensor", width, f"a divisor of the expert width ({expert_dim})")
    accepted = f"groups that fill {shards} devices evenly: a multiple of {shards} of them, where there are {num_groups}"
    require(num_groups % shards == 0, "group_size", None, accepted)


def weight_spec(name: str) -> P:
    """How one of the experts' weights is divided while they run: by expert, and by width."""
    if name == "down":
        return P("expert", "tensor", None)
    return P("expert") if name in ("down_bias", "map") else P("expert", None, "tensor")


def _run_part(
    run: Execution, x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind
) -> Float[Array, "G S O"]:
    """`run` with one part of each expert's width, summed over the parts."""
    whole = [name for name in weights if weight_spec(name) == P("expert")]
    first = jax.lax.axis_index("tensor") == 0
    weights = {**weights, **{name: jnp.where(first, weights[name], jnp.zeros((), x.dtype)) for name in whole}}
    return jax.lax.psum(run(jax.lax.pcast(x, "tensor", to="varying"), assignment, weights, kind), "tensor")
