"""The mesh that a computation runs on, and what each device does with its own groups of tokens.

A mesh is ambient: whoever runs a model does so inside `jax.set_mesh`. Tokens are divided over the axes `data`, `fsdp`
and `expert`, whole groups to each device. G groups.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

# What a mesh is made of, outermost first.
AXES = ("data", "fsdp", "expert", "tensor")
# Those that divide tokens.
TOKEN_AXES = ("data", "fsdp", "expert")
BY_TOKEN = PartitionSpec(TOKEN_AXES)


def current_mesh() -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`; None where there is one device, and within `shard_map`, where each is alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return None
    return mesh


def current_platform() -> str:
    """The platform, `cpu`, `gpu` or `tpu`, that will run what is being traced; of a mesh, which need not be here."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform_of(mesh) if not mesh.empty else jax.default_backend()


def platform_of(mesh: AbstractMesh) -> str:
    """The platform that a mesh is of, also where it is not this process's own."""
    return mesh.abstract_device.platform if mesh.abstract_device else jax.default_backend()


def token_shards(mesh: AbstractMesh) -> int:
    """How many devices share the tokens of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]


def shard_over_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of arrays whose first axis is groups, run by each device on its own groups.

    XLA gathers the whole array for what it cannot divide: a top-k, a sort, an indexed update. Where the function sees
    no group but its own there is no need to. It must give arrays by group, too.
    """

    def divided(*arrays: Any) -> Any:
        if current_mesh() is None:
            return function(*arrays)
        return jax.shard_map(function, in_specs=BY_TOKEN, out_specs=BY_TOKEN)(*arrays)

    return divided


def vary_alike(tree: Any) -> Any:
    """Within `shard_map`: arrays that vary over the same axes, all those over which any does."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)))

    def vary(x: Any) -> Any:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def keep_sharded_by_token(tree: Any) -> Any:
    """Tells XLA that the first axis of each array (batch, or groups) stays divided over devices as tokens are."""
    if current_mesh() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, BY_TOKEN), tree)
