"""Each strategy on each mesh equals the reference on one device, in value and in every gradient, per expert."""

import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError, build
from moe_jax.experts.apply import apply_experts
from moe_jax.experts.parallel.run import apply_on_mesh
from moe_jax.experts.parallel.strategy import ParallelConfig, choose_strategy
from moe_jax.runtime.mesh import current_mesh
from tests.comparison import assert_close, assert_each_close
from tests.experts.test_against_oracle import KINDS, along_experts, draw, route
from tests.meshes import MESHES, make_mesh

# G, S, D, F, E: eight groups, so that each of eight devices has one.
SHAPE = (8, 6, 4, 6, 8)
# strategy -> the way of running experts it is tried with.
RUNS = {"all_to_all": "padded", "dropless": "dropless", "gather": "padded"}
COMBINES = ("output", "input", "mix")


@functools.partial(jax.jit, static_argnames=("kind", "combine"))
def reference(kind, combine, x, assignment, weights, cotangent):
    def apply(x, weight, weights):
        replaced = assignment.replace(weight=weight)
        return apply_experts(x, replaced, weights, KINDS[kind], "oracle", combine)

    y, vjp = jax.vjp(apply, x, assignment.weight, weights)
    return y, *vjp(cotangent)


@functools.cache
def on_mesh(mesh_name, strategy, kind, combine, execution, slack):
    """The strategy, compiled for a mesh: output, gradients, metrics."""
    config = ParallelConfig(strategy, slack=slack)

    @jax.jit
    def run(x, assignment, weights, cotangent):
        def apply(x, weight, weights):
            replaced = assignment.replace(weight=weight)
            kinds = KINDS[kind]
            return apply_on_mesh(x, replaced, weights, kinds, execution, combine, current_mesh(), config, 1.0)

        y, vjp, metrics = jax.vjp(apply, x, assignment.weight, weights, has_aux=True)
        return y, *vjp(cotangent), metrics

    def divided(*arguments):
        with jax.set_mesh(make_mesh(mesh_name)):
            return run(*arguments)

    return divided


def assert_equal_reference(mesh, strategy, router, capacity_factor, kind, combine, favour, valid, seed, slack=1.0):
    """Compares, and returns the assignment, the output and what the strategy says of itself."""
    x, kernel, weights, cotangent = draw(SHAPE, kind, seed)
    assignment = route(router, capacity_factor, x, kernel, favour, valid)
    cotangent = along_experts(kind, x, assignment, weights, cotangent)
    expected = reference(kind, combine, x, assignment, weights, cotangent)
    execution = RUNS[strategy]
    *actual, metrics = on_mesh(mesh, strategy, kind, combine, execution, slack)(x, assignment, weights, cotangent)
    for one, other, what in zip(actual[:3], expected[:3], ("output", "input", "weight"), strict=True):
        assert_close(one, other, what=f"{strategy} on {mesh}: {what}")
    for name, gradient in expected[3].items():
        assert_each_close(actual[3][name], gradient, what=f"{strategy} on {mesh}: {name}")
    return assignment, actual, metrics


@pytest.mark.parametrize("strategy", RUNS)
@pytest.mark.parametrize("mesh", MESHES)
@settings(max_examples=6)
@given(data=st.data())
def test_equals_the_reference(mesh, strategy, data):
    groups, tokens, *_, experts = SHAPE
    router = data.draw(st.sampled_from(["switch", "gshard_all", "expert_choice"]), "router")
    factor = data.draw(st.sampled_from([None, 1.0]), "capacity factor")
    bits = data.draw(st.lists(st.integers(0, 9), min_size=groups * tokens, max_size=groups * tokens), "validity")
    valid = jnp.asarray(bits).reshape(groups, tokens) < data.draw(st.sampled_from([0, 7, 10]), "share valid")
    favour = data.draw(st.sampled_from([0.0, 3.0, 50.0]), "skew") * jax.nn.one_hot(0, experts)
    seed = data.draw(st.integers(0, 99), "seed")
    assert_equal_reference(mesh, strategy, router, factor, "swiglu", "output", favour, valid, seed)


@pytest.mark.parametrize("strategy", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_expert_with_its_width_divided(kind, strategy):
    favour, valid = jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[:2], bool)
    assert_equal_reference("2x2x2 fsdp-expert-tensor", strategy, "gshard_all", 1.0, kind, "output", favour, valid, 1)


@pytest.mark.parametrize("strategy", RUNS)
@pytest.mark.parametrize("combine", COMBINES)
def test_every_way_of_applying_weights(combine, strategy):
    favour, valid = jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[:2], bool).at[:, 2].set(False)
    mesh = "2x2x2 data-expert-tensor"
    assert_equal_reference(mesh, strategy, "gshard_all", 1.0, "swiglu", combine, favour, valid, 2)


@pytest.mark.parametrize("mesh", ["8 expert", "2x4 data-expert"])
@pytest.mark.parametrize("strategy", RUNS)
def test_every_token_on_one_expert(mesh, strategy):
    """Without a capacity nothing is dropped under any skew, and dropless says that it took its long buffers."""
    favour, valid = 100.0 * jax.nn.one_hot(5, SHAPE[-1]), jnp.ones(SHAPE[:2], bool)
    assignment, (y, *_, gradients), metrics = assert_equal_reference(
        mesh, strategy, "switch", None, "swiglu", "output", favour, valid, 3
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
    _, (y, *_), _ = assert_equal_reference(mesh, "all_to_all", "switch", 2.0, "swiglu", "output", favour, valid, 4)
    runs = jnp.abs(y).max(axis=-1) > 0
    assert (runs == jnp.asarray([False, True, True, False, False, False])[None]).all()


def test_buffers_do_not_overflow_at_even_load():
    """One token in eight for each expert, hence for each device."""
    experts = SHAPE[-1]
    x, _, weights, cotangent = draw((8, 8, *SHAPE[2:]), "swiglu")
    assignment = route("switch", None, x, jnp.zeros((SHAPE[2], experts)), jnp.zeros(experts), jnp.ones((8, 8), bool))
    even = assignment.replace(expert=jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32)[None], (8, 8)))
    *actual, metrics = on_mesh("8 expert", "dropless", "swiglu", "output", "dropless", 1.0)(x, even, weights, cotangent)
    expected = reference("swiglu", "output", x, even, weights, cotangent)
    assert_close(actual[0], expected[0])
    assert metrics == {"buffers_overflowed": 0.0}


def test_outputs_stay_divided_by_token():
    x, kernel, weights, cotangent = draw(SHAPE, "swiglu")
    assignment = route("switch", 1.0, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    run = on_mesh("2x4 data-expert", "all_to_all", "swiglu", "output", "padded", 1.0)
    y, x_gradient, *_ = run(x, assignment, weights, cotangent)
    for array in (y, x_gradient):
        assert {shard.data.shape for shard in array.addressable_shards} == {(1, *SHAPE[1:3])}


@pytest.mark.parametrize("wire", ["bfloat16", "float32"])
def test_the_wire_has_the_type_asked_for(wire):
    """Values are the reference's, to the precision of what travels."""
    x, kernel, weights, cotangent = draw(SHAPE, "swiglu")
    assignment = route("gshard_all", 1.0, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    dtype = jnp.bfloat16 if wire == "float32" else jnp.float32
    config = ParallelConfig("all_to_all", wire=wire)

    def run(x, weights):
        kind = KINDS["swiglu"]
        return apply_on_mesh(x, assignment, weights, kind, "padded", "output", current_mesh(), config, 1.0)[0]

    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, weights))
    with jax.set_mesh(make_mesh("8 expert")):
        sent = [line for line in str(jax.make_jaxpr(run)(*tree)).splitlines() if "all_to_all" in line]
        y = jax.jit(run)(*tree)
    assert len(sent) == 2
    assert all(("bf16[" if wire == "bfloat16" else "f32[") in line for line in sent)
    assert y.dtype == dtype
    assert_close(y, reference("swiglu", "output", x, assignment, weights, cotangent)[0], 3e-2)


@pytest.mark.parametrize(
    ("execution", "platform", "devices", "rows", "expected"),
    [
        ("padded", "cpu", 8, 1.25, "all_to_all"),
        ("padded", "gpu", 8, 2.5, "all_to_all"),
        ("padded", "cpu", 1, 1.25, "gather"),
        ("padded", "cpu", 8, 8.0, "gather"),
        ("dropless", "cpu", 8, 2.0, "dropless"),
        ("dropless", "gpu", 8, 2.0, "dropless"),
        ("dropless", "tpu", 8, 2.0, "ragged"),
        ("one_hot", "tpu", 8, 1.0, "gather"),
    ],
)
def test_auto_goes_by_platform_and_shape(execution, platform, devices, rows, expected):
    assert choose_strategy(ParallelConfig(), execution, platform, devices, rows) == expected


@pytest.mark.parametrize(
    ("config", "execution", "message"),
    [
        ({"strategy": "ragged"}, "dropless", r"strategy is 'ragged'; accepted: dropless, .* on platform 'cpu'"),
        ({"strategy": "all_to_all"}, "dropless", "strategy is 'all_to_all'; accepted: .*execution='dropless'"),
        ({"strategy": "dropless"}, "padded", "strategy is 'dropless'; accepted: .*execution='padded'"),
        ({"strategy": "ring"}, "padded", "strategy is 'ring'; accepted: 'auto', 'all_to_all', 'dropless'"),
        ({"slack": 0.5}, "dropless", "slack is 0.5; accepted: a number of at least 1"),
    ],
)
def test_what_cannot_run_is_refused(config, execution, message):
    with pytest.raises(ConfigError, match=message):
        choose_strategy(build(ParallelConfig, config), execution, "cpu", 8, 2.0)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((8, 6, 4, 6, 6), "8 expert", r"mesh.expert is 8; accepted: a divisor of num_experts \(6\)"),
        ((8, 6, 4, 5, 8), "2x2x2 data-expert-tensor", r"mesh.tensor is 2; accepted: a divisor of .* width \(5\)"),
        ((4, 6, 4, 6, 8), "8 expert", "a multiple of 8 of them, where there are 4"),
    ],
)
def test_what_the_mesh_cannot_divide_is_refused(shape, axes, message):
    x, kernel, weights, _ = draw(shape, "swiglu")
    assignment = route("switch", 1.0, x, kernel, jnp.zeros(shape[-1]), jnp.ones(shape[:2], bool))
    with jax.set_mesh(make_mesh(axes)), pytest.raises(ConfigError, match=message):
        apply_on_mesh(
            x, assignment, weights, KINDS["swiglu"], "padded", "output", current_mesh(), ParallelConfig(), 1.0
        )


def test_a_mesh_without_an_axis_is_refused():
    x, kernel, weights, _ = draw(SHAPE, "swiglu")
    assignment = route("switch", 1.0, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    mesh = jax.make_mesh((8,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match="a mesh with axes data, fsdp, expert, tensor; it has no"):
        apply_on_mesh(
            x, assignment, weights, KINDS["swiglu"], "padded", "output", current_mesh(), ParallelConfig(), 1.0
        )
