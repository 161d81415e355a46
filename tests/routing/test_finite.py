"""Finite inputs give finite values and gradients: zeros, ties, raw pixels, huge and tiny numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.layers.mode import Mode
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.routing import ROUTERS
from moe_jax.routing.router import STATE
from moe_jax.routing.statistics import METRICS, Statistic
from tests.routing import routers

G, S, D = routers.G, routers.S, routers.D
normal = np.random.default_rng(0).normal(size=(G, S, D)).astype(np.float32)
INPUTS = {
    "zeros": np.zeros_like(normal),
    "one token's zeros": normal * (np.arange(S) != 3)[:, None],
    "ties": np.broadcast_to(normal[:1, :1], normal.shape),
    "raw pixels": np.random.default_rng(1).integers(0, 256, normal.shape).astype(np.float32),
    "large": normal * 1e4,
    "huge": normal * 1e15,
    "tiny": normal * 1e-30,
}


def named(sown):
    """The statistics in a collection by their names, wherever they are."""
    leaves = jax.tree_util.tree_leaves_with_path(sown, is_leaf=lambda leaf: isinstance(leaf, Statistic))
    return {path[-1].key: statistic.value for path, statistic in leaves}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ROUTERS)
def test_decisions_losses_and_gradients(name, training):
    module = routers.build(name, training=training)
    start = routers.variables(module)

    @jax.jit
    def value_and_gradients(params, x):
        def total(params, x):
            given = {"params": params} | {key: tree for key, tree in start.items() if key != "params"}
            tokens = routers.tokens().replace(x=x)
            decision, sown = module.apply(given, tokens, rngs={"routing": jax.random.key(2)}, mutable=[METRICS])
            floats = [leaf for leaf in jax.tree.leaves(decision) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            losses = [named(sown)[loss] for loss in module.router.losses]
            return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)) for leaf in floats + losses)

        return jax.value_and_grad(total, (0, 1))(params, x)

    params = start.get("params", {})
    for case, x in INPUTS.items():
        for scale in (0.0, 1.0):
            found = value_and_gradients(jax.tree.map(lambda leaf, scale=scale: leaf * scale, params), x)
            try:
                chex.assert_tree_all_finite(found)
            except AssertionError as error:
                raise AssertionError(f"{case}, parameters times {scale}") from error


@pytest.mark.parametrize("name", ROUTERS)
def test_sixty_steps_on_raw_pixels(name):
    """A layer is trained on inputs that nobody scaled; its routers' losses have their coefficients."""
    k = routers.K[name]
    fields = {"capacity_factor": 1.0 if ROUTERS[name].drops else None, "group_size": S, "expert_dim": 8, "ffn": "relu"}
    config = MoEConfig(routers.E, router=name, k=k, execution="padded", **fields)
    layer, x = MoE(config, Mode(training=True)), jnp.asarray(INPUTS["raw pixels"])
    tokens = routers.tokens()
    rest = {"ids": tokens.ids, "positions": tokens.positions}
    variables = layer.init({"params": jax.random.key(0), "routing": jax.random.key(1)}, x, tokens.valid, **rest)
    optimizer = optax.adam(1e-2)

    def loss(params, state, key):
        given = {"params": params, STATE: state}
        y, sown = layer.apply(given, x, tokens.valid, **rest, rngs={"routing": key}, mutable=[METRICS])
        losses = named(sown)
        auxiliary = sum(weight * jnp.sum(losses[name]) for name, weight in config.coefficients.items())
        return jnp.mean((y - x / 255) ** 2) + auxiliary

    def step(carry, key):
        params, moments = carry
        value, gradients = jax.value_and_grad(loss)(params, variables.get(STATE, {}), key)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), (value, optax.tree.norm(gradients))

    start = variables["params"], optimizer.init(variables["params"])
    keys = jax.random.split(jax.random.key(2), 60)
    # Adam promotes its count of steps.
    with jax.numpy_dtype_promotion("standard"):
        (params, _), curve = jax.jit(lambda start, keys: jax.lax.scan(step, start, keys))(start, keys)
    chex.assert_tree_all_finite((params, curve))
