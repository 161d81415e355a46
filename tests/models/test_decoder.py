"""What holds of the whole decoder: packing, causality, precision."""

import dataclasses

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from moe_jax.configuration import to_dict
from moe_jax.models.language_model import make_model
from moe_jax.routing.router import STATE
from tests.comparison import assert_close, assert_trees_close
from tests.models import small

FREE = {"router": "switch", "capacity_factor": None}
MODELS = {
    "dense": (None, {}),
    "dense t5": (None, {"attention": {"positions": "t5"}}),
    "switch": (FREE, {}),
    "switch dropless": (FREE | {"execution": "dropless"}, {}),
    "gshard": ({"router": {"kind": "gshard", "second_policy": "all"}, "k": 2, "capacity_factor": None}, {}),
}


def build(name, **fields):
    moe, more = MODELS[name]
    config = small.config(moe, **more, **fields)
    return config, sharpen(small.start(config))


def sharpen(params):
    """Larger tables and router kernels than at the start, so that positions and experts matter."""

    def scale(path, p):
        return p * 20.0 if "router" in jax.tree_util.keystr(path) or "table" in jax.tree_util.keystr(path) else p

    return jax.tree_util.tree_map_with_path(scale, params)


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_as_documents_alone(name):
    """Two documents and padding in one sequence; no capacity, so nothing else joins them."""
    config, params = build(name)
    tokens, positions, segments = small.batch(rows=1, length=12)
    packed_positions = jnp.concatenate([jnp.arange(5), jnp.arange(4), jnp.zeros(3, jnp.int32)])[None].astype(jnp.int32)
    packed_segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3], jnp.int32)
    packed = small.logits(config, params, (tokens, packed_positions, packed_segments))
    first = small.logits(config, params, (tokens[:, :5], positions[:, :5], segments[:, :5]))
    second = small.logits(config, params, (tokens[:, 5:9], positions[:, :4], segments[:, :4]))
    assert_close(packed[:, :5], first)
    assert_close(packed[:, 5:9], second)
    # Had the second document seen the first, it would differ.
    assert np.abs(packed - small.logits(config, params, (tokens, positions, segments)))[:, 5:9].max() > 1e-2


@pytest.mark.parametrize("name", ["dense", "dense t5", "switch", "gshard", "binding"])
def test_a_later_token_never_changes_an_earlier_logit(name):
    if name == "binding":
        config = small.config({"router": "switch", "capacity_factor": 0.5})
        params = sharpen(small.start(config))
    else:
        config, params = build(name)
    tokens, positions, segments = small.batch()
    other = tokens.at[:, 7:].set((tokens[:, 7:] + 11) % small.VOCAB)
    before = small.logits(config, params, (tokens, positions, segments))
    after = small.logits(config, params, (other, positions, segments))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()


def test_a_binding_capacity_drops_and_evaluation_may_have_its_own():
    moe = {"router": "switch", "capacity_factor": 0.5}
    config = small.config(moe | {"eval_capacity_factor": 4.0})
    params = sharpen(small.start(config))
    tight, free = (small.config(moe | {"capacity_factor": factor}) for factor in (0.5, None))
    inputs = small.batch()
    evaluated, trained = (small.logits(config, params, inputs, training) for training in (False, True))
    np.testing.assert_array_equal(trained, small.logits(tight, params, inputs))
    assert_close(evaluated, small.logits(free, params, inputs))
    assert (evaluated != trained).any()


def test_padding_changes_nothing_of_the_rest():
    """In the model whose capacity binds too: padding behind the tokens takes no seat."""
    config = small.config({"router": "switch", "capacity_factor": 0.5, "group_size": 12})
    params = sharpen(small.start(config))
    tokens, positions, segments = small.batch()
    segments = segments.at[:, 9:].set(0)
    other = tokens.at[:, 9:].set(3)
    np.testing.assert_array_equal(
        small.logits(config, params, (tokens, positions, segments))[:, :9],
        small.logits(config, params, (other, positions, segments))[:, :9],
    )


@pytest.mark.parametrize("name", ["dense", "dense t5", "switch", "gshard"])
def test_bfloat16_stays_near_float32(name):
    config, params = build(name)
    half = dataclasses.replace(config, dtype="bfloat16")
    assert {p.dtype for p in jax.tree.leaves(small.start(half))} == {jnp.dtype("float32")}
    inputs = small.batch()
    exact, rounded = small.logits(config, params, inputs), small.logits(half, params, inputs)
    assert rounded.dtype == jnp.float32
    # A token whose two best experts are near a tie may change experts; the median tells of all others.
    errors = np.abs(rounded - exact).max(axis=-1)
    assert np.median(errors) < 0.03 * np.abs(exact).max()
    if config.moe is None:
        assert_close(rounded, exact, 0.03)
    gradients = jax.jit(jax.grad(lambda p: small.loss(half, p, inputs)))(params)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    chex.assert_tree_all_finite(gradients)


def test_a_dense_model_is_the_sparse_one_with_one_field_changed():
    sparse = to_dict(small.config(FREE))
    dense = to_dict(dataclasses.replace(small.config(FREE), moe_layers=()))
    assert {field for field in sparse if sparse[field] != dense[field]} == {"moe_layers"}


def test_as_a_module_of_nnx():
    """Logits and gradients are those of Linen, and the router's state is a variable."""
    config = small.config({"router": "deepseek", "k": 2}, num_layers=1, moe_layers=(0,))
    model, inputs = make_model(config), small.batch()
    wrapped = nnx.jit(lambda: bridge.lazy_init(bridge.ToNNX(model, rngs=nnx.Rngs(0)), *inputs))()
    params = nnx.to_pure_dict(nnx.state(wrapped, nnx.Param))
    state = {"layer_0": {"moe": {"router": {"bias": wrapped.layer_0["moe"]["router"]["bias"].get_value()}}}}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, small.start(config))

    def loss(params):
        return jnp.sum(jnp.cos(model.apply({"params": params, STATE: state}, *inputs)))

    expected, gradients = jax.jit(jax.value_and_grad(loss))(params)
    run = nnx.jit(nnx.value_and_grad(lambda model: jnp.sum(jnp.cos(model(*inputs)))))
    actual, wrapped_gradients = run(wrapped)
    assert_close(actual, expected)
    assert_trees_close(nnx.to_pure_dict(wrapped_gradients), gradients)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_exported_for_another_platform(platform):
    """A train step's gradients, too, call no native code for CPUs."""
    config = small.config({"router": "deepseek", "k": 2})
    model, inputs = make_model(config), small.batch()

    def loss(params, variables):
        return jnp.sum(model.apply({**variables, "params": params}, *inputs) ** 2)

    variables = jax.eval_shape(model.init, {"params": jax.random.key(0), "routing": jax.random.key(0)}, *inputs)
    program = jax.jit(lambda variables: jax.value_and_grad(loss)(variables["params"], variables))
    exported = jax.export.export(program, platforms=[platform])(variables)
    assert "moe_jax_" not in exported.mlir_module()
