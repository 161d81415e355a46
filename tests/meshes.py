"""The meshes that tests try, over the eight forced devices."""

import functools

import jax

from moe_jax.training import mesh
from moe_jax.training.config import MeshConfig

MESHES = {
    "8 data": MeshConfig(data=8),
    "8 expert": MeshConfig(expert=8),
    "2x4 data-expert": MeshConfig(data=2, expert=4),
    "2x2x2 data-expert-tensor": MeshConfig(data=2, expert=2, tensor=2),
    "2x2x2 fsdp-expert-tensor": MeshConfig(fsdp=2, expert=2, tensor=2),
}


@functools.cache
def make_mesh(name: str) -> jax.sharding.Mesh:
    """A mesh of `MESHES`; by any other name, one device."""
    return mesh.make_mesh(MESHES.get(name, MeshConfig()))
