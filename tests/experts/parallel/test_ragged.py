"""Strategy `ragged` equals the reference, on CPUs that are taught its exchange."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from moe_jax.experts.apply import apply_experts
from moe_jax.experts.ffn import FFN_KINDS
from tests.comparison import assert_close
from tests.experts.parallel.ragged_exchange import teach_cpu
from tests.experts.parallel.runs import COMBINES, SHAPE, assert_equal_reference, plan_of, reference
from tests.experts.problems import draw, route
from tests.meshes import MESHES, make_mesh


@pytest.fixture(scope="module", autouse=True)
def _ragged_on_cpu():
    teach_cpu()


@pytest.mark.parametrize("breach", [None, "sizes", "room"])
def test_the_exchange_is_what_jax_documents(breach):
    """The example of its docstring; and NaN where sizes contradict each other, or there is no room."""
    fields = [[[0, 1], [0, 1]], [[1, 2], [1, 1]], [[0, 0], [1, 2]], [[1, 1], [2, 1]]]
    if breach:
        fields[3 if breach == "sizes" else 2][0] = [2, 1] if breach == "sizes" else [0, 3]

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=jax.make_mesh((2,), ("i",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=PartitionSpec("i"),
        out_specs=PartitionSpec("i"),
    )
    def run(operand, output, *fields):
        moved = jax.lax.ragged_all_to_all(operand[0], output[0], *(field[0] for field in fields), axis_name="i")
        return moved[None]

    operand, output = jnp.asarray([[1.0, 2, 2], [3, 4, 0]]), jnp.zeros((2, 4))
    result = np.asarray(run(operand, output, *(jnp.asarray(field, jnp.int32) for field in fields)))
    if breach:
        assert np.isnan(result[0 if breach == "sizes" else 1]).all()
    else:
        np.testing.assert_array_equal(result, [[1, 3, 0, 0], [2, 2, 4, 0]])


# Each is compiled for each mesh it is tried on: all of them where many devices exchange.
ROUTERS = dict.fromkeys(MESHES, ("gshard_all",)) | dict.fromkeys(
    ("8 expert", "2x4 data-expert"), ("switch", "gshard_all", "expert_choice")
)


def assert_ragged_equals_the_reference(mesh, router, kind, combine, favour, valid, seed):
    factor = 1.0 if router == "expert_choice" else None
    assignment, actual, metrics = assert_equal_reference(
        mesh, plan_of("ragged"), router, factor, kind, combine, favour, valid, seed
    )
    assert metrics == {}
    return assignment, actual


@pytest.mark.parametrize("mesh", MESHES)
@settings(max_examples=6)
@given(data=st.data())
def test_ragged_equals_the_reference(mesh, data):
    groups, tokens, *_, experts = SHAPE
    router = data.draw(st.sampled_from(ROUTERS[mesh]), "router")
    share = data.draw(st.sampled_from([0.0, 0.7, 1.0]), "share valid")
    seed = data.draw(st.integers(0, 99), "seed")
    valid = jnp.asarray(np.random.default_rng(seed).random((groups, tokens)) < share)
    favour = data.draw(st.sampled_from([0.0, 3.0, 50.0]), "skew") * jax.nn.one_hot(0, experts)
    assert_ragged_equals_the_reference(mesh, router, "swiglu", "output", favour, valid, seed)


@pytest.mark.parametrize(
    ("kind", "combine"), [("gpt_oss", "output"), *(("swiglu", combine) for combine in COMBINES if combine != "output")]
)
def test_ragged_with_biases_and_every_way_of_applying_weights(kind, combine):
    favour, valid = jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[:2], bool).at[:, 2].set(False)
    mesh = "2x2x2 data-expert-tensor"
    assert_ragged_equals_the_reference(mesh, "gshard_all", kind, combine, favour, valid, 2)


@pytest.mark.parametrize("mesh", ["8 expert", "2x4 data-expert"])
def test_ragged_with_every_token_on_one_expert(mesh):
    favour, valid = 100.0 * jax.nn.one_hot(5, SHAPE[-1]), jnp.ones(SHAPE[:2], bool)
    assignment, (y, *_, gradients) = assert_ragged_equals_the_reference(
        mesh, "switch", "swiglu", "output", favour, valid, 3
    )
    assert assignment.kept.all()
    assert (jnp.abs(y).max(axis=-1) > 0).all()
    for gradient in gradients.values():
        assert (gradient.at[5].set(0) == 0).all()


@pytest.mark.parametrize("wire", ["bfloat16", "float32"])
def test_the_ragged_wire_has_the_type_asked_for(wire):
    """Each way, values are the reference's, to the precision of what travels."""
    x, kernel, params, cotangent = draw(SHAPE, "swiglu")
    assignment = route("gshard_all", None, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    dtype = jnp.bfloat16 if wire == "float32" else jnp.float32

    def run(x, params):
        return apply_experts(plan_of("ragged", wire=wire), x, assignment, params, FFN_KINDS["swiglu"])[0]

    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, params))
    with jax.set_mesh(make_mesh("8 expert")):
        sent = [line for line in str(jax.make_jaxpr(run)(*tree)).splitlines() if "ragged_all_to_all[" in line]
        y = jax.jit(run)(*tree)
    assert len(sent) == 2
    assert all(("bf16[" if wire == "bfloat16" else "f32[") in line for line in sent)
    assert y.dtype == dtype
    assert_close(y, reference("swiglu", "output", x, assignment, params, cotangent)[0], 3e-2)
