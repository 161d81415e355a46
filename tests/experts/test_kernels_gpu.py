"""tokamax's products become kernels for GPUs, on a machine that has none but has tokamax; no test without it.

A rows, E experts, M and N widths.
"""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from moe_jax.experts.kernels.grouped_matmul import grouped_matmul
from moe_jax.experts.kernels.tokamax import has_tokamax

# A, M, N, E: of a model, with rests on every side, and of one row and column.
SHAPES = [(4000, 2816, 1408, 64), (700, 600, 1100, 3), (1, 1, 1, 1)]
# Generations by what CUDA calls their capability, and the products of two of rows and one of matrices that are Mosaic's
# where types and widths are.
AMPERE, HOPPER, BLACKWELL = 8.0, 9.0, 10.0
IN_MOSAIC = {AMPERE: 0, HOPPER: 3, BLACKWELL: 2}
# As they are called in the text of a program that is not compiled.
MOSAIC, TRITON, XLA_OWN = "@mosaic_gpu_v2(", "@__gpu$xla.gpu.triton(", "chlo.ragged_dot"


def calls(function, *arguments):
    """How often a program for GPUs calls products of each kind."""
    from tokamax import config

    with config.cross_compile(True):
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return +Counter({name: program.count(name) for name in (MOSAIC, TRITON, XLA_OWN, "all_reduce")})


def value_and_gradients(x, w, sizes, cotangent):
    y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, "tokamax"), x, w)
    return y, *vjp(cotangent)


if has_tokamax():

    @pytest.fixture(autouse=True)
    def _on_a_gpu(monkeypatch):
        monkeypatch.setattr("moe_jax.experts.kernels.choice.current_platform", lambda: "gpu")
        monkeypatch.setattr("tokamax._src.gpu_utils._compute_capability", lambda device=None: AMPERE)
        # What was traced for another generation.
        jax.clear_caches()

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("generation", IN_MOSAIC)
    def test_products_and_their_gradients_are_kernels(generation, shape, dtype, monkeypatch):
        monkeypatch.setattr("tokamax._src.gpu_utils._compute_capability", lambda device=None: generation)
        rows, m, n, experts = shape
        x, w, cotangent = (jax.ShapeDtypeStruct(s, dtype) for s in [(rows, m), (experts, m, n), (rows, n)])
        found = calls(value_and_gradients, x, w, jax.ShapeDtypeStruct((experts,), jnp.int32), cotangent)
        mosaic = IN_MOSAIC[generation] if dtype == jnp.bfloat16 and shape == SHAPES[0] else 0
        assert found == +Counter({MOSAIC: mosaic, TRITON: 3 - mosaic})

    def test_each_device_of_a_mesh_runs_its_own():
        """Within `shard_map`, which checks as ever: gradients of matrices that all devices have are summed."""
        mesh = Mesh(jax.devices()[:4], "x", axis_types=(AxisType.Auto,))
        rows, everywhere = PartitionSpec("x"), PartitionSpec()
        run = functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(rows, everywhere, rows, rows), out_specs=(rows, rows, everywhere)
        )
        x, w, cotangent = (jax.ShapeDtypeStruct(s, jnp.float32) for s in [(400, 24), (3, 24, 40), (400, 40)])
        found = calls(run(value_and_gradients), x, w, jax.ShapeDtypeStruct((12,), jnp.int32), cotangent)
        assert found == {TRITON: 3, "all_reduce": 1}
