"""Grouped products compile for a TPU, on a machine that has none but has libtpu (extra `tpu-plan`); else no test.

A rows, E experts, M and N widths; G groups, S tokens of a group, K choices per token, D model width, F expert width.
"""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe_jax.experts.dropless import dropless
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.kernels.grouped_matmul import grouped_matmul
from moe_jax.routing.assignment import assign_choices
from tests.topology import HAS_TPUS, tpu_devices

# A, M, N, E: of a model, with the largest tiles, those with rests on every side, small, and of one row and column.
SHAPES = [(4096, 2816, 1408, 64), (8192, 4096, 14336, 8), (700, 2047, 2047, 3), (90, 5, 33, 8), (1, 1, 1, 1)]


def compiled(topology, function, *arguments):
    """The program for one TPU of a slice, of arguments given by their shapes and types."""
    mesh = Mesh(tpu_devices(topology)[:1], "x", axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*abstract).compile().as_text()


def calls(program):
    """How many kernels of each name a program calls."""
    kernels = (line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line)
    return dict(Counter(re.search(r"(\w+)\)*/pallas_call", line)[1] for line in kernels))


if HAS_TPUS:

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
    def test_products_and_their_gradients_compile(topology, shape, dtype):
        rows, m, n, experts = shape

        def run(x, w, sizes, cotangent):
            y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, "megablox"), x, w)
            return y, *vjp(cotangent)

        x, w, cotangent = (jax.ShapeDtypeStruct(s, dtype) for s in [(rows, m), (experts, m, n), (rows, n)])
        program = compiled(topology, run, x, w, jax.ShapeDtypeStruct((experts,), jnp.int32), cotangent)
        assert calls(program) == {"megablox_product": 2, "megablox_outer": 1}
        # The gradient of rows reads the matrices as they lie.
        assert not re.search(rf"\[{experts},{n},{m}\].* transpose\(", program)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_experts_and_their_gradients_compile(dtype):
        """Three products of a gated unit, of which two are of tokens; each has two gradients."""
        groups, tokens, choices, experts, model_dim, expert_dim = 4, 64, 2, 8, 128, 256
        kind = FFN_KINDS["swiglu"]

        def loss(x, weight, params, expert):
            requested = jnp.ones(expert.shape, bool)
            assignment = assign_choices(expert, weight, requested, experts, tokens)
            return (dropless(x, assignment, params, kind, "megablox").astype(jnp.float32) ** 2).sum()

        arguments = (
            jax.ShapeDtypeStruct((groups, tokens, model_dim), dtype),
            jax.ShapeDtypeStruct((groups, tokens, choices), jnp.float32),
            {
                name: jax.ShapeDtypeStruct((experts, *shape), dtype)
                for name, shape in kind.shapes(model_dim, expert_dim).items()
            },
            jax.ShapeDtypeStruct((groups, tokens, choices), jnp.int32),
        )
        program = compiled("v5e:2x2", jax.value_and_grad(loss, argnums=(0, 1, 2)), *arguments)
        assert calls(program) == {"megablox_product": 6, "megablox_outer": 3}
        assert "ragged-dot" not in program
