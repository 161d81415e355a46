"""The mesh of a run, and how each array of its state lies on it.

The axes: `data` repeats the model, `fsdp` repeats the computation but divides what is stored, `expert` divides the
experts, `tensor` divides widths. All but `tensor` divide the tokens of a batch.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from moe_jax.configuration import errors_within, require
from moe_jax.models.config import ModelConfig
from moe_jax.models.parameters import declare_parameters
from moe_jax.runtime.mesh import AXES, BY_TOKEN
from moe_jax.runtime.parameters import Parameter, Parameters
from moe_jax.training.config import MeshConfig, TrainConfig


def make_mesh(config: MeshConfig) -> Mesh:
    """Makes the configured mesh over the first devices that jax sees.

    Raises:
      ConfigError: there are not as many devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    count, devices = math.prod(sizes), jax.devices()
    if jax.process_count() > 1:
        accepted = f"sizes whose product is the {len(devices)} devices of all {jax.process_count()} processes"
        require(count == len(devices), "mesh", config, accepted)
    require(count <= len(devices), "mesh", config, f"at most {len(devices)} devices, which is how many there are")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count])


def require_memory(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError unless a device's memory holds its part of the parameters and of AdamW's two moments.

    On CPUs jax would wait forever for a program that gets no memory.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(mesh.local_devices)
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit", math.inf)
    copies = 3 if config.optimizer.name == "adamw" else 1
    elements = sum(
        math.prod(NamedSharding(mesh, spec_of(parameter, parameter.shape, mesh)).shard_shape(parameter.shape))
        for parameter in declare_parameters(config.model).values()
    )
    needed = elements * copies * jnp.dtype(jnp.float32).itemsize
    accepted = f"{memory:,} at most, the memory of a device; mesh.fsdp and mesh.expert divide parameters"
    require(needed <= memory, "bytes of parameters and moments on a device", needed, accepted)


def state_shardings(state: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """Returns how each array of a `TrainState` of a model lies on a mesh; see `shardings`."""
    return shardings(state, declare_parameters(config), mesh)


def shardings(tree: Any, parameters: Parameters, mesh: Mesh) -> Any:
    """Returns how each array of a tree lies on a mesh.

    Parameters lie as they are declared, and moments of a parameter like it; all else is whole on every device.

    Args:
      tree: arrays, or their shapes; parameters and moments have the declared paths, below whatever holds them.
      parameters: the declared parameters.
      mesh: the mesh.
    """

    def sharding(path: tuple[Any, ...], x: Any) -> NamedSharding:
        names = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        return NamedSharding(mesh, spec_of(parameters.get(names), x.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def spec_of(parameter: Parameter | None, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the division of an array that belongs to a declared parameter, or to None.

    An axis that the mesh does not divide evenly stays whole, and so does a factored moment, which has other axes.
    """
    if parameter is None or parameter.shape != shape:
        return PartitionSpec()
    return PartitionSpec(
        *(
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(parameter.axes, shape, strict=True)
        )
    )


def data_process(mesh: Mesh) -> tuple[int, int]:
    """Returns the index of the part of a batch that this process's devices have, and the number of parts.

    Processes that share a width along `tensor` have the same part.

    Raises:
      ConfigError: the rows of this process's devices are not consecutive in the order of the mesh.
    """
    by_shard = mesh.devices.reshape(-1, mesh.shape["tensor"])
    mine = [i for i, row in enumerate(by_shard) if any(d.process_index == jax.process_index() for d in row)]
    first, count = mine[0], len(mine)
    whole = mine == list(range(first, first + count)) and first % count == 0 and len(by_shard) % count == 0
    require(whole, "mesh", mesh.shape, "sizes with which each process has as many rows of a batch, one after another")
    return first // count, len(by_shard) // count


def process_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Places a batch on the mesh from the rows of this process, which are all rows if there is one process."""
    sharding, (_, parts) = NamedSharding(mesh, BY_TOKEN), data_process(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (rows.shape[0] * parts, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def whole_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Places a batch on the mesh from a copy of all its rows in every process."""
    sharding = NamedSharding(mesh, BY_TOKEN)
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, lambda index, rows=rows: rows[index])
        for name, rows in batch.items()
    }


def describe_mesh(config: TrainConfig) -> str:
    """Describes in one line the devices of a run, how its experts are run, and how tokens reach them.

    Raises:
      ConfigError: experts cannot be run as the configuration asks.
    """
    sizes = ", ".join(f"{axis} {getattr(config.mesh, axis)}" for axis in AXES if getattr(config.mesh, axis) > 1)
    where = f"{config.name} on {config.mesh.size} {jax.default_backend()} device{'s' * (config.mesh.size > 1)}"
    where += f" ({sizes})" if sizes else ""
    with jax.set_mesh(make_mesh(config.mesh)), errors_within("model.moe"):
        plans = dict.fromkeys(str(moe.plan()) for moe in config.model.mixtures)
    return "; ".join([where, *plans])
