"""What routers remember moves once in a training step, by what the step's tokens asked for, and never in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.paths import unstack_layers
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.step import make_eval_step, make_train_step
from tests.comparison import assert_close
from tests.training.tiny_runs import first_state, random_batch, tiny_config

SETS = {"model.num_layers": 2, "model.moe_layers": (0, 1)}
ROUTERS = {
    "deepseek": {
        "model.moe.router": {"kind": "deepseek", "bias_rate": 0.01},
        "model.moe.losses": {"balance_loss": 0.5},
    },
    "quantile": {"model.moe.router": {"kind": "quantile", "rate": 0.5}},
    "remoe": {"model.moe.router": {"kind": "remoe", "start": 0.5, "growth": 1.5}},
}


def prepared(router, **sets):
    config = tiny_config(sets=SETS | ROUTERS[router] | {"model.moe.capacity_factor": None} | sets)
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = jax.jit(make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps)))
    return config, step, first_state(config, optimizer)


def test_a_selection_bias_moves_against_the_load_of_the_step():
    _, step, state = prepared("deepseek")
    first, metrics = step(state, random_batch(0))
    for layer in ("layer_0", "layer_1"):
        load = np.asarray(metrics["load"][layer])
        moved = 0.01 * np.sign(load.mean() - load)
        assert_close(first.router_state[layer]["moe"]["router"]["bias"], moved - moved.mean(), 1e-6)
    second, again = step(first, random_batch(1))
    load = np.asarray(again["load"]["layer_1"])
    expected = np.asarray(first.router_state["layer_1"]["moe"]["router"]["bias"]) + 0.01 * np.sign(load.mean() - load)
    assert_close(second.router_state["layer_1"]["moe"]["router"]["bias"], expected - expected.mean(), 1e-5)
    np.testing.assert_allclose(
        metrics["total_loss"], metrics["loss"] + 0.5 * metrics["balance_loss"] + 0.0 * metrics["z_loss"], rtol=1e-6
    )


@pytest.mark.parametrize("router", ROUTERS)
def test_scanned_layers_remember_what_unrolled_ones_do(router):
    config, step, state = prepared(router)
    scanned_config, scanned_step, scanned = prepared(router, **{"model.scan_layers": True, "model.remat": True})
    moved, _ = step(state, random_batch())
    scanned_moved, _ = scanned_step(scanned, random_batch())
    ours = unstack_layers(scanned_moved.router_state, scanned_config.model)
    assert ours.keys() == moved.router_state.keys() == {"layer_0", "layer_1"}
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(moved.router_state), strict=True):
        assert_close(one, other, 1e-4)
    changed = zip(jax.tree.leaves(moved.router_state), jax.tree.leaves(state.router_state), strict=True)
    assert all((one != other).any() for one, other in changed), config.model.moe.router


def test_evaluation_heeds_the_state():
    """A bias that no score outweighs sends all tokens to two experts."""
    config, _, state = prepared("deepseek")
    evaluate = jax.jit(make_eval_step(config))
    biased = jax.tree.map(lambda bias: bias + jnp.asarray([9.0, 0.0, 0.0, 9.0]), state.router_state)
    load = evaluate(state.replace(router_state=biased), random_batch())["load"]["layer_1"]
    np.testing.assert_allclose(load, [0.5, 0, 0, 0.5])


def test_the_loss_of_depth_is_trained():
    sets = {"model.moe_layers": (), "model.moe": None, "model.num_layers": 2, "optimizer.clip_norm": None}
    config = tiny_config(sets=sets | {"model.depth": {"layers": (1,), "capacity": 0.25, "coefficient": 0.5}})
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = jax.jit(make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps)))
    state = first_state(config, optimizer)
    new, metrics = step(state, random_batch())
    np.testing.assert_allclose(metrics["total_loss"], metrics["loss"] + 0.5 * metrics["depth_loss"], rtol=1e-6)
    assert metrics["depth_share"] == 0.25
    assert (new.params["layer_1"]["depth_kernel"] != state.params["layer_1"]["depth_kernel"]).any()
    evaluated = jax.jit(make_eval_step(config))(new, random_batch())
    assert 0 <= evaluated["depth_share"] <= 1
    assert {"depth_loss", "depth_accuracy"} <= evaluated.keys()
