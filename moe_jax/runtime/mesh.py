"""The ambient mesh, which `jax.set_mesh` sets, and the division of groups of tokens over its devices.

Tokens are divided over the axes `data`, `fsdp` and `expert`; each device has whole groups. G groups.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

# Axes of a mesh, outermost first.
AXES = ("data", "fsdp", "expert", "tensor")
# Axes that divide tokens.
TOKEN_AXES = ("data", "fsdp", "expert")
BY_TOKEN = PartitionSpec(TOKEN_AXES)


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh with our AXES that `jax.set_mesh` has set; None for a single device, and within `shard_map`.

    On a mesh of other axes, which is a user's own, we divide nothing, and leave the division to XLA.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not set(AXES) <= set(mesh.axis_names):
        return None
    return mesh


def current_platform() -> str:
    """Returns the platform, `cpu`, `gpu` or `tpu`, that the traced program will run on: the ambient mesh's, if any."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform_of(mesh) if not mesh.empty else jax.default_backend()


def platform_of(mesh: AbstractMesh) -> str:
    """Returns the platform of a mesh, which may differ from this process's own."""
    return mesh.abstract_device.platform if mesh.abstract_device else jax.default_backend()


def token_shards(mesh: AbstractMesh) -> int:
    """Counts the devices that divide the tokens of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]


def shard_over_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of arrays [G, ...] so that each device runs it on its own groups.

    XLA gathers the whole array for operations that it cannot divide, such as a top-k, a sort or an indexed update. This
    is needless if the function treats each group by itself. Its results must be arrays [G, ...], too.
    """

    def divided(*arrays: Any) -> Any:
        if current_mesh() is None:
            return function(*arrays)
        return jax.shard_map(function, in_specs=BY_TOKEN, out_specs=BY_TOKEN)(*arrays)

    return divided


def vary_alike(tree: Any) -> Any:
    """Makes arrays within `shard_map` vary over the same axes: all axes over which any of them varies."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)))

    def vary(x: Any) -> Any:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def keep_sharded_by_token(tree: Any) -> Any:
    """Tells XLA to keep the first axis of each array (batch, or groups) divided over devices as tokens are."""
    if current_mesh() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, BY_TOKEN), tree)
