"""The layer on a mesh that a user has made, with other axes than ours: the results of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_jax.layers.moe import MoE, MoEConfig
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
