"""tokamax's products become kernels for GPUs, on a machine that has none but has tokamax; no test without it.

A rows, E experts, M and N widths.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from moe_jax.experts.kernels.grouped_matmul import grouped_matmul
from moe_jax.experts.kernels.tokamax import has_tokamax

# A, M, N, E: of a model, with rests on every side, and of one row and column.
SHAPES = [(4000, 2816, 1408, 64), (700, 600, 1100, 3), (1, 1, 1, 1)]
# GPUs by name: what CUDA calls their capability, and how many of the products, two of rows and one of matrices, are in
# Mosaic where types and widths allow it; for the first it depends on the release.
GPUS = {"NVIDIA A100": (8.0, {0, 2}), "NVIDIA H100": (9.0, {3}), "NVIDIA B200": (10.0, {2})}
# As they are called in the text of a program that is not compiled.
MOSAIC, TRITON, XLA_OWN = "@mosaic_gpu_v2(", "@__gpu$xla.gpu.triton(", "chlo.ragged_dot"


def mesh_of(gpu, number=1):
    return AbstractMesh((number,), ("x",), (AxisType.Auto,), abstract_device=AbstractDevice(gpu, None, "gpu"))


def calls(mesh, function, *arguments):
    """How often a program for a mesh of GPUs calls products of each kind."""
    from tokamax import config

    # What was traced for another GPU would be taken for this one's.
    jax.clear_caches()
    with config.cross_compile(True), jax.sharding.use_abstract_mesh(mesh):
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return +Counter({name: program.count(name) for name in (MOSAIC, TRITON, XLA_OWN, "all_reduce")})


def value_and_gradients(x, w, sizes, cotangent):
    y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, "tokamax"), x, w)
    return y, *vjp(cotangent)


if has_tokamax():

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("gpu", GPUS)
    def test_products_and_their_gradients_are_kernels(gpu, shape, dtype, monkeypatch):
        capability, mosaic = GPUS[gpu]
        # It asks a device, of which there is none.
        monkeypatch.setattr("tokamax._src.gpu_utils._compute_capability", lambda device=None: capability)
        rows, m, n, experts = shape
        x, w, cotangent = (jax.ShapeDtypeStruct(s, dtype) for s in [(rows, m), (experts, m, n), (rows, n)])
        sizes = jax.ShapeDtypeStruct((experts,), jnp.int32)
        if dtype != jnp.bfloat16 or shape != SHAPES[0]:
            mosaic = {0}
        found = calls(mesh_of(gpu), value_and_gradients, x, w, sizes, cotangent)
        assert found[MOSAIC] in mosaic
        assert found == +Counter({MOSAIC: found[MOSAIC], TRITON: 3 - found[MOSAIC]})

    def test_each_device_of_a_mesh_runs_its_own():
        """Within `shard_map`, which checks as ever: gradients of matrices that all devices have are summed."""
        mesh, rows, everywhere = mesh_of("NVIDIA A100", 4), PartitionSpec("x"), PartitionSpec()
        run = jax.shard_map(
            value_and_gradients,
            mesh=mesh,
            in_specs=(rows, everywhere, rows, rows),
            out_specs=(rows, rows, everywhere),
        )
        x, w, cotangent = (jax.ShapeDtypeStruct(s, jnp.float32) for s in [(400, 24), (3, 24, 40), (400, 40)])
        found = calls(mesh, run, x, w, jax.ShapeDtypeStruct((12,), jnp.int32), cotangent)
        assert found == {TRITON: 3, "all_reduce": 1}
