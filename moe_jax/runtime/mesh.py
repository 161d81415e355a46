"""The mesh that a computation runs on, and functions that each device runs on its own groups of tokens.

A mesh is ambient: models run inside `jax.set_mesh`. Tokens are divided over the axes `data`, `fsdp` and `expert`, so
that each device has whole groups.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

# The axes of a mesh, outermost first.
AXES = ("data", "fsdp", "expert", "tensor")
# The axes that divide tokens.
TOKEN_AXES = ("data", "fsdp", "expert")
BY_TOKEN = PartitionSpec(TOKEN_AXES)


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh set by `jax.set_mesh`; None for one device, and within `shard_map`, where a device is alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return None
    return mesh


def current_platform() -> str:
    """Returns the platform that will run the program being traced: `cpu`, `gpu` or `tpu`.

    It is the platform of the mesh, which may be that of another machine, or of this process without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return platform_of(mesh) if not mesh.empty else jax.default_backend()


def platform_of(mesh: AbstractMesh) -> str:
    """Returns the platform of a mesh, which need not be the platform of this process."""
    return mesh.abstract_device.platform if mesh.abstract_device else jax.default_backend()


def token_shards(mesh: AbstractMesh) -> int:
    """Counts the devices that share the tokens of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]


def shard_over_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `function` run on each device for the device's own groups.

    XLA gathers the whole array for an operation that it cannot divide: a top-k, a sort, an indexed update. This avoids
    it for functions that compute each group by itself.

    Args:
      function: takes and returns arrays whose first axis is groups.
    """

    def divided(*arrays: Any) -> Any:
        if current_mesh() is None:
            return function(*arrays)
        return jax.shard_map(function, in_specs=BY_TOKEN, out_specs=BY_TOKEN)(*arrays)

    return divided


def vary_alike(tree: Any) -> Any:
    """Within `shard_map`, makes all arrays vary over the same mesh axes: those over which any of them varies."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)))

    def vary(x: Any) -> Any:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def keep_sharded_by_token(tree: Any) -> Any:
    """Keeps the first axis of each array (batch or groups) divided over devices as tokens are."""
    if current_mesh() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, BY_TOKEN), tree)
