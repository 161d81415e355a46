"""Strategies compile for a TPU, on a machine that has none but has libtpu (extra `tpu-plan`); else no test.

G groups, S tokens of a group, K choices per token, E experts, D model width, F expert width.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from moe_jax.experts.apply import apply_experts
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.parallel.on_mesh import param_spec
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.experts.plan import plan_here
from moe_jax.routing.assignment import assign_choices
from moe_jax.runtime.mesh import AXES, BY_TOKEN
from tests.topology import HAS_TPUS, tpu_devices

# G, S, K, E, D, F: widths that fill the registers of a TPU.
SHAPE = (8, 16, 2, 8, 128, 128)
KIND = FFN_KINDS["swiglu"]
# data, fsdp, expert, tensor.
MESHES = {"8 expert": (1, 1, 8, 1), "2x2x2 data-expert-tensor": (2, 1, 2, 2)}
# strategy -> how experts are run, the exchange that brings rows, the exchanges that must not be there.
EXCHANGES = {
    "ragged": ("dropless", "ragged-all-to-all", ()),
    "dropless": ("dropless", "all-to-all", ("ragged-all-to-all",)),
    "all_to_all": ("padded", "all-to-all", ("ragged-all-to-all",)),
}


def make_mesh(name):
    return Mesh(tpu_devices("v5e:2x4").reshape(MESHES[name]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def compiled(mesh, strategy, execution, *, gradient):
    """The program for TPU, of the output or of a loss with all its gradients."""
    groups, tokens, choices, experts, model_dim, expert_dim = SHAPE

    def output(x, weight, params, expert):
        requested = jnp.ones(expert.shape, bool)
        assignment = assign_choices(expert, weight, requested, experts, tokens)
        plan = plan_here(execution, parallel=ParallelConfig(strategy))
        return apply_experts(plan, x, assignment, params, KIND)[0]

    def loss(*arguments):
        return (output(*arguments) ** 2).sum()

    def abstract(spec, *shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    shapes = KIND.shapes(model_dim, expert_dim)
    arguments = (
        abstract(BY_TOKEN, groups, tokens, model_dim),
        abstract(BY_TOKEN, groups, tokens, choices),
        {name: abstract(param_spec(name), experts, *shape) for name, shape in shapes.items()},
        abstract(BY_TOKEN, groups, tokens, choices, dtype=jnp.int32),
    )
    function = jax.value_and_grad(loss, argnums=(0, 1, 2)) if gradient else output
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*arguments).compile().as_text()


def count(program, operation):
    """How often a program brings rows of D floats by an operation."""
    started = re.compile(rf" {operation}(-start)?\(")
    lines = (line.split("=", 1)[1] for line in program.splitlines() if started.search(line))
    return sum(re.match(rf"[ (]*(f32|bf16)\[[\d,]*\b{SHAPE[4]}\]", line) is not None for line in lines)


if HAS_TPUS:

    @pytest.mark.parametrize("mesh", MESHES)
    @pytest.mark.parametrize("strategy", EXCHANGES)
    def test_compiles_for_tpu(strategy, mesh):
        """Rows go there and back, and so do their gradients; a second pair where there are two kinds of buffers.

        Experts without seats run on the kernel for TPUs.
        """
        execution, exchange, absent = EXCHANGES[strategy]
        buffers = 2 if strategy == "dropless" else 1
        for gradient in (False, True):
            program = compiled(make_mesh(mesh), strategy, execution, gradient=gradient)
            assert count(program, exchange) == buffers * (4 if gradient else 2)
            assert not any(operation in program for operation in absent)
            if execution == "dropless":
                assert "megablox_product" in program
                assert ("megablox_outer" in program) == gradient
                assert "ragged-dot" not in program
