"""Each strategy on each mesh equals the reference on one device, in value and in every gradient, per expert."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError, build
from moe_jax.experts.apply import apply_experts
from moe_jax.experts.parallel.strategies import STRATEGIES, ParallelConfig
from tests.comparison import assert_close
from tests.experts.parallel.runs import COMBINES, SHAPE, assert_equal_reference, on_mesh, plan_of, reference
from tests.experts.problems import KINDS, draw, route
from tests.meshes import MESHES, make_mesh

# What CPUs cannot run, `ragged`, has a file of its own.
PLANS = {name: plan_of(name, slack=1.0) for name, strategy in STRATEGIES.items() if "cpu" in strategy.platforms}

# Each is compiled for each mesh: all of them where many devices exchange, one with each other kind of axes.
ROUTERS = dict.fromkeys(("8 expert", "2x4 data-expert"), ("switch", "gshard_all", "expert_choice")) | {
    "8 data": ("gshard_all",),
    "2x2x2 data-expert-tensor": ("switch",),
    "2x2x2 fsdp-expert-tensor": ("expert_choice",),
}


@pytest.mark.parametrize("strategy", PLANS)
@pytest.mark.parametrize("mesh", MESHES)
@settings(max_examples=6)
@given(data=st.data())
def test_equals_the_reference(mesh, strategy, data):
    groups, tokens, *_, experts = SHAPE
    router = data.draw(st.sampled_from(ROUTERS[mesh]), "router")
    factor = data.draw(st.sampled_from([None, 1.0]), "capacity factor")
    bits = data.draw(st.lists(st.integers(0, 9), min_size=groups * tokens, max_size=groups * tokens), "validity")
    valid = jnp.asarray(bits).reshape(groups, tokens) < data.draw(st.sampled_from([0, 7, 10]), "share valid")
    favour = data.draw(st.sampled_from([0.0, 3.0, 50.0]), "skew") * jax.nn.one_hot(0, experts)
    seed = data.draw(st.integers(0, 99), "seed")
    assert_equal_reference(mesh, PLANS[strategy], router, factor, "swiglu", "output", favour, valid, seed)


@pytest.mark.parametrize("strategy", PLANS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_expert_with_its_width_divided(kind, strategy):
    favour, valid, mesh = jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[:2], bool), "2x2x2 fsdp-expert-tensor"
    assert_equal_reference(mesh, PLANS[strategy], "gshard_all", 1.0, kind, "output", favour, valid, 1)


@pytest.mark.parametrize("strategy", PLANS)
@pytest.mark.parametrize("combine", COMBINES)
def test_every_way_of_applying_weights(combine, strategy):
    favour, valid = jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[:2], bool).at[:, 2].set(False)
    mesh = "2x2x2 data-expert-tensor"
    assert_equal_reference(mesh, PLANS[strategy], "gshard_all", 1.0, "swiglu", combine, favour, valid, 2)


@pytest.mark.parametrize("mesh", ["8 expert", "2x4 data-expert"])
@pytest.mark.parametrize("strategy", PLANS)
def test_every_token_on_one_expert(mesh, strategy):
    """Without a capacity nothing is dropped under any skew, and dropless says that it took its long buffers."""
    favour, valid = 100.0 * jax.nn.one_hot(5, SHAPE[-1]), jnp.ones(SHAPE[:2], bool)
    assignment, (y, *_, gradients), metrics = assert_equal_reference(
        mesh, PLANS[strategy], "switch", None, "swiglu", "output", favour, valid, 3
    )
    assert assignment.kept.all()
    assert (jnp.abs(y).max(axis=-1) > 0).all()
    for gradient in gradients.values():
        assert (gradient.at[5].set(0) == 0).all()
    assert metrics == ({"buffers_overflowed": 1.0} if strategy == "dropless" else {})


@pytest.mark.parametrize("mesh", ["8 expert", "2x4 data-expert"])
def test_a_capacity_drops_what_the_definition_drops(mesh):
    """All tokens of a group ask for one expert with two seats: the first two that are valid are run, no other."""
    favour = 100.0 * jax.nn.one_hot(5, SHAPE[-1])
    valid = jnp.ones(SHAPE[:2], bool).at[:, 0].set(False)
    plan = PLANS["all_to_all"]
    _, (y, *_), _ = assert_equal_reference(mesh, plan, "switch", 2.0, "swiglu", "output", favour, valid, 4)
    runs = jnp.abs(y).max(axis=-1) > 0
    assert (runs == jnp.asarray([False, True, True, False, False, False])[None]).all()


def test_buffers_do_not_overflow_at_even_load():
    """One token in eight for each expert, hence for each device."""
    experts = SHAPE[-1]
    x, _, params, cotangent = draw((8, 8, *SHAPE[2:]), "swiglu")
    assignment = route("switch", None, x, jnp.zeros((SHAPE[2], experts)), jnp.zeros(experts), jnp.ones((8, 8), bool))
    even = assignment.replace(expert=jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32)[None], (8, 8)))
    *actual, metrics = on_mesh("8 expert", PLANS["dropless"], "swiglu", "output")(x, even, params, cotangent)
    expected = reference("swiglu", "output", x, even, params, cotangent)
    assert_close(actual[0], expected[0])
    assert metrics == {"buffers_overflowed": 0.0}


def test_outputs_stay_divided_by_token():
    x, kernel, params, cotangent = draw(SHAPE, "swiglu")
    assignment = route("switch", 1.0, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    run = on_mesh("2x4 data-expert", PLANS["all_to_all"], "swiglu", "output")
    y, x_gradient, *_ = run(x, assignment, params, cotangent)
    for array in (y, x_gradient):
        assert {shard.data.shape for shard in array.addressable_shards} == {(1, *SHAPE[1:3])}


@pytest.mark.parametrize("wire", ["bfloat16", "float32"])
def test_the_wire_has_the_type_asked_for(wire):
    """Values are the reference's, to the precision of what travels."""
    x, kernel, params, cotangent = draw(SHAPE, "swiglu")
    assignment = route("gshard_all", 1.0, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    dtype = jnp.bfloat16 if wire == "float32" else jnp.float32

    def run(x, params):
        return apply_experts(plan_of("all_to_all", wire=wire), x, assignment, params, KINDS["swiglu"])[0]

    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, params))
    with jax.set_mesh(make_mesh("8 expert")):
        sent = [line for line in str(jax.make_jaxpr(run)(*tree)).splitlines() if "all_to_all" in line]
        y = jax.jit(run)(*tree)
    assert len(sent) == 2
    assert all(("bf16[" if wire == "bfloat16" else "f32[") in line for line in sent)
    assert y.dtype == dtype
    assert_close(y, reference("swiglu", "output", x, assignment, params, cotangent)[0], 3e-2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": "ring"}, f"strategy is 'ring'; accepted: {', '.join(sorted({'auto', *STRATEGIES}))}"),
        ({"strategy": "raged"}, "did you mean 'ragged'?"),
        ({"slack": 0.5}, "slack is 0.5; accepted: a number of at least 1"),
        ({"rebalance_every": 0}, "rebalance_every is 0; accepted: an integer of at least 1, or None"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        build(ParallelConfig, config)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((8, 6, 4, 6, 6), "8 expert", r"mesh.expert is 8; accepted: a divisor of num_experts \(6\)"),
        ((8, 6, 4, 5, 8), "2x2x2 data-expert-tensor", r"mesh.tensor is 2; accepted: a divisor of .* width \(5\)"),
        (
            (4, 6, 4, 6, 8),
            "8 expert",
            "^group_size makes 4 groups of tokens, which 8 devices cannot share .* a multiple of 8",
        ),
    ],
)
def test_what_the_mesh_cannot_divide_is_refused(shape, axes, message):
    x, kernel, params, _ = draw(shape, "swiglu")
    assignment = route("switch", 1.0, x, kernel, jnp.zeros(shape[-1]), jnp.ones(shape[:2], bool))
    with jax.set_mesh(make_mesh(axes)), pytest.raises(ConfigError, match=message):
        apply_experts(PLANS["all_to_all"], x, assignment, params, KINDS["swiglu"])


def test_a_strategy_without_a_mesh_is_refused():
    x, kernel, params, _ = draw(SHAPE, "swiglu")
    assignment = route("switch", 1.0, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    with pytest.raises(ValueError, match=r"strategy 'gather' of the plan needs a mesh; .* within jax\.set_mesh"):
        apply_experts(PLANS["gather"], x, assignment, params, KINDS["swiglu"])
