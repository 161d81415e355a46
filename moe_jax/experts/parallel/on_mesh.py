"""Division of experts over a mesh: each device runs its own groups of tokens, and has its own part of the parameters.

G groups, S tokens of a group, E experts, D model width, F expert width, O output width (D; F for linear experts).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from moe_jax.configuration import ConfigError, require
from moe_jax.experts.ffn import FFNParams, expert_axes
from moe_jax.experts.parallel.strategy import Metrics
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import BY_TOKEN, token_shards

Apply = Callable[[Float[Array, "G S D"], Assignment, FFNParams], tuple[Float[Array, "G S O"], Metrics]]


def on_each_device(
    apply: Apply, x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Calls `apply` on each device of the mesh, with the device's groups and its part of `params`.

    Groups are divided over the axes data, fsdp and expert, experts over expert, and their width over tensor. `apply`
    must return the same metrics on all devices.
    """
    in_specs = (BY_TOKEN, BY_TOKEN, {name: param_spec(name) for name in params})
    return jax.shard_map(apply, in_specs=in_specs, out_specs=(BY_TOKEN, P()))(x, assignment, params)


def sum_over_width(apply: Apply) -> Apply:
    """Makes `apply` sum its results over the axis tensor, along which each device has a part of the experts' width."""

    def summed(
        x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams
    ) -> tuple[Float[Array, "G S O"], Metrics]:
        # A parameter that is not divided counts once: on the first device.
        whole = [name for name in params if "tensor" not in expert_axes(name)]
        first = jax.lax.axis_index("tensor") == 0
        once = {name: jnp.where(first, params[name], jnp.zeros((), x.dtype)) for name in whole}
        y, metrics = apply(jax.lax.pcast(x, "tensor", to="varying"), assignment, {**params, **once})
        return jax.lax.psum(y, "tensor"), metrics

    return summed


def check_mesh(mesh: AbstractMesh, num_experts: int, expert_dim: int, num_groups: int) -> None:
    """Raises ConfigError if `mesh` does not divide experts, their width or the groups evenly.

    Args:
      mesh: the mesh.
      num_experts: E.
      expert_dim: F; 0 for linear experts, whose width is not divided.
      num_groups: groups of all devices.
    """
    experts, width, shards = mesh.shape["expert"], mesh.shape["tensor"], token_shards(mesh)
    require(num_experts % experts == 0, "mesh.expert", experts, f"a divisor of num_experts ({num_experts})")
    require(expert_dim % width == 0, "mesh.tensor", width, f"a divisor of the expert width ({expert_dim})")
    if num_groups % shards:
        problem = f"group_size makes {num_groups} groups of tokens, which {shards} devices cannot share evenly"
        raise ConfigError(f"{problem}; use a size that makes a multiple of {shards} groups")


def param_spec(name: str) -> P:
    """Returns how the experts' parameter `name` is divided while they run: by expert, and by width."""
    return P(*(axis if axis in ("expert", "tensor") else None for axis in expert_axes(name)))
