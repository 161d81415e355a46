"""Dropout: only in training, unbiased, where it is said to be, and of experts alone where a mixture has its own."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.layers.mode import Mode
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.models.language_model import make_model
from moe_jax.routing.statistics import METRICS
from tests.comparison import assert_close
from tests.models import small

SWITCH = {"router": "switch", "capacity_factor": None}


def run(config, seed=0, training=True):
    rngs = {"routing": jax.random.key(5), "dropout": jax.random.key(seed)}
    return small.compiled(config, training)({"params": small.start(config)}, *small.batch(), rngs=rngs)


@pytest.mark.parametrize("moe", [None, SWITCH], ids=["dense", "switch"])
def test_values_drop_out_in_training_alone(moe):
    config = small.config(moe, dropout=0.3)
    plain = run(dataclasses.replace(config, dropout=0.0))
    np.testing.assert_array_equal(run(config, training=False), plain)
    np.testing.assert_array_equal(run(config), run(config))
    assert np.abs(run(config) - run(config, seed=1)).max() > 1e-2
    assert np.abs(run(config) - plain).max() > 1e-2


@pytest.mark.parametrize("execution", ["padded", "dropless", "one_hot", "oracle"])
def test_experts_alone_drop_hidden_values(execution):
    """The mean over draws is what it is without dropout."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 16)), jnp.float32)
    fields = {"num_experts": 4, "expert_dim": 64, "ffn": "relu", "capacity_factor": None, "execution": execution}
    plain = MoE(MoEConfig(**fields))
    params = jax.jit(plain.init)(jax.random.key(0), x)["params"]
    expected = jax.jit(plain.apply)({"params": params}, x)

    @jax.jit
    def draw(key):
        return MoE(MoEConfig(**fields, dropout=0.4), Mode(training=True)).apply(
            {"params": params}, x, rngs={"dropout": key}
        )

    drawn = np.stack([draw(jax.random.key(i)) for i in range(400)])
    assert (drawn.std(axis=0) > 0).all()
    errors = np.abs(drawn.mean(axis=0) - expected) / (drawn.std(axis=0) / 20)
    # Of 256 means of 400 draws.
    assert errors.max() < 5
    model = small.config(SWITCH | {"dropout": 0.4, "execution": execution})
    assert (
        np.abs(run(model) - run(dataclasses.replace(model, moe=dataclasses.replace(model.moe, dropout=0.0)))).max() > 0
    )


def test_a_hidden_value_that_drops_out_is_gone():
    """With an identity for the second matrix the output shows which hidden values are there, and how large."""
    x = jnp.ones((1, 50, 8))
    config = MoEConfig(num_experts=1, expert_dim=8, ffn="relu", capacity_factor=None, dropout=0.25)
    moe = MoE(config, Mode(training=True))
    params = nn.meta.unbox(moe.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)["params"])
    params |= {"experts_up": jnp.eye(8)[None], "experts_down": jnp.eye(8)[None]}
    y = np.asarray(moe.apply({"params": params}, x, rngs={"dropout": jax.random.key(1)}))
    gone = y == 0
    assert_close(y[~gone], np.full((~gone).sum(), 1 / 0.75))
    assert 0.15 < gone.mean() < 0.35


def test_scanned_layers_draw_each_for_themselves():
    """Of two equal layers, one and then the other without its residual: alike only if both dropped the same values."""
    config = small.config(num_layers=2, dropout=0.5, scan_layers=True)

    def record(next_function, arguments, keywords, context):
        result = next_function(*arguments, **keywords)
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            # The collection that scanned layers stack anyway.
            context.module.sow(METRICS, "dropped", result == 0)
        return result

    rngs = {"dropout": jax.random.key(0)}
    with nn.intercept_methods(record):
        apply = jax.jit(functools.partial(make_model(config, True).apply, mutable=[METRICS]))
        _, sown = apply({"params": small.start(config)}, *small.batch(), rngs=rngs)
    # Of attention weights, which alone have five axes; another is the layers'.
    (weights,) = [mask for mask in jax.tree.leaves(sown) if mask.ndim == 6]
    assert len(weights) == 2
    assert (weights[0] != weights[1]).mean() > 0.1


def test_it_is_where_t5_has_it():
    config = small.config(dropout=0.5)
    params = small.start(config)
    shapes = []

    def record(next_function, arguments, keywords, context):
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            shapes.append(arguments[0].shape)
        return next_function(*arguments, **keywords)

    with nn.intercept_methods(record):
        jax.eval_shape(
            make_model(config, True).apply, {"params": params}, *small.batch(), rngs={"dropout": jax.random.key(0)}
        )
    # Embedded tokens and last values; a layer: weights, what attention adds, hidden values, what the network adds.
    stream, weights, hidden = (2, 12, 16), (2, 4, 1, 12, 12), (24, 24)
    layer = [weights, stream, hidden, stream]
    assert shapes == [stream, *layer, *layer, stream]
