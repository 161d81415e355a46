"""The layer on a mesh that a user has made, with other axes than ours or explicit ones: the results of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.routing.statistics import values
from moe_jax.runtime.mesh import AXES
from tests.comparison import assert_trees_close

ROUTERS = {"switch": 1, "top_k": 2, "expert_choice": 2, "deepseek": 2}


@pytest.mark.parametrize("execution", ["auto", "padded", "one_hot"])
@pytest.mark.parametrize("router", ROUTERS)
def test_values_and_gradients(router, execution):
    layer = MoE(MoEConfig(4, router=router, k=ROUTERS[router], expert_dim=8, ffn="swiglu", execution=execution))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 12, 6)), jnp.float32)
    valid = jnp.asarray(rng.random((8, 12)) < 0.8)
    variables = jax.jit(layer.init)(jax.random.key(0), x, valid)

    def value_and_gradients(params, x):
        def loss(params, x):
            y = layer.apply({**variables, "params": params}, x, valid)
            return jnp.sum(y * jnp.cos(y)), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return y, gradients

    expected = jax.jit(value_and_gradients)(variables["params"], x)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, NamedSharding(mesh, P("data")))
        actual = jax.jit(value_and_gradients)(variables["params"], divided)
    assert_trees_close(actual, expected)


WAYS = {name: {"execution": name} for name in ("one_hot", "padded")}
WAYS |= {name: {"execution": "dropless", "kernel": name} for name in ("native", "blocks", "ragged_dot")}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
# Shape, axes and their types, and how tokens are divided.
MESHES = {
    "divided": ((4,), ("data",), (EXPLICIT,), P("data")),
    "whole": ((4,), ("data",), (EXPLICIT,), P()),
    "mixed": ((2, 4), ("data", "model"), (AUTO, EXPLICIT), P(None, "model")),
    "of our axes": ((2, 1, 4, 1), AXES, (EXPLICIT,) * 4, P(("data", "expert"))),
}


def compiled(layer, key):
    """The start, and the values, metrics and gradients of any start."""

    def run(variables, x):
        def loss(params, x):
            y, sown = layer.apply({**variables, "params": params}, x, mutable=["routing"])
            return jnp.sum(y * jnp.cos(y)), (y, values(sown["routing"]["router"]))

        (_, (y, metrics)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return y, metrics, gradients

    return jax.jit(lambda x: layer.init(key, x)), jax.jit(run)


def assert_equal_on_mesh(layer, name):
    shape, axes, types, spec = MESHES[name]
    start, run = compiled(layer, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12, 6)), jnp.float32)
    expected_start = start(x)
    expected = run(expected_start, x)
    mesh = jax.make_mesh(shape, axes, axis_types=types)
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, NamedSharding(mesh, spec))
        variables = start(divided)
        actual = run(variables, divided)
    assert_trees_close(variables["params"], expected_start["params"])
    assert_trees_close(actual, expected)
    y, _, (of_params, of_x) = actual
    assert y.sharding.spec == of_x.sharding.spec == P(*spec, *[None] * (3 - len(spec)))
    assert all(not any(leaf.sharding.spec) for leaf in jax.tree.leaves(of_params))


@pytest.mark.parametrize("way", WAYS)
def test_explicit_axes_with_every_way_of_running(way):
    """Tokens divided over the axis; the layer's result and the gradient of its tokens are, too."""
    assert_equal_on_mesh(MoE(MoEConfig(4, router="top_k", k=2, expert_dim=8, ffn="swiglu", **WAYS[way])), "divided")


@pytest.mark.parametrize("name", [name for name in MESHES if name != "divided"])
def test_explicit_axes_of_any_mesh(name):
    """Tokens whole on every device, axes of both kinds, and our own axes, over which experts are divided as ever."""
    assert_equal_on_mesh(MoE(MoEConfig(4, router="deepseek", k=2, expert_dim=8, ffn="swiglu")), name)
