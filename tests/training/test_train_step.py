"""One step of training: its loss and gradients against an independent computation, its padding, its routers' losses."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.layers.norms import RMSNorm
from moe_jax.models.decoder import Decoder
from moe_jax.models.paths import unstack_layers
from moe_jax.models.routing_metrics import auxiliary_loss, routing_by_layer, routing_metrics
from moe_jax.routing.router import RNG, RouterModule
from moe_jax.routing.statistics import METRICS
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.step import make_eval_step, make_train_step
from tests.comparison import assert_trees_equal
from tests.training.tiny_runs import B, S, first_state, random_batch, tiny_config

DENSE = {"model.moe_layers": (), "model.moe": None, "model.attention.positions": "t5", "optimizer.clip_norm": None}
SPARSE = {"model.moe.router": "switch", "model.moe.k": 1, "model.num_layers": 2}
SPARSE |= {"model.moe_layers": (0, 1), "optimizer.clip_norm": None}
STEERED = SPARSE | {"model.moe.losses": {"balance_loss": 0.5, "z_loss": 0.25}}


PREPARED = {}


def prepare(sets):
    """Configuration, step, evaluation and first state; a step is compiled once for each shape of batch."""
    if repr(sets) not in PREPARED:
        config = tiny_config(sets=sets)
        optimizer = make_optimizer(config.optimizer, config.steps)
        step = make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps))
        state = first_state(config, optimizer)
        PREPARED[repr(sets)] = config, jax.jit(step), jax.jit(make_eval_step(config)), state
    return PREPARED[repr(sets)]


def dense_loss(params, batch):
    """Mean cross-entropy of a one-layer, one-head dense decoder, written anew."""

    def norm(x, name, tree=None):
        scale = (tree or params)[name]["scale"]
        return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * jnp.broadcast_to(scale, x.shape)

    layer = params["layer_0"]
    x = params["embedding"]["embedding"][batch["tokens"]]
    normed = norm(x, "attention_norm", layer)
    query, key, value = (normed @ layer["attention"][name]["kernel"] for name in ("query", "key", "value"))
    width = query.shape[-1]
    distance = np.maximum(np.arange(S)[:, None] - np.arange(S)[None, :], 0)  # Below 16, a bucket each.
    bias = params["relative_bias"]["table"][distance, 0]
    logits = jnp.einsum("bqn,bkn->bqk", query, key) / width**0.5 + bias[None]
    segments = batch["segment_ids"]
    sees = (segments[:, :, None] == segments[:, None, :]) & np.tri(S, dtype=bool)[None]
    attention = jax.nn.softmax(jnp.where(sees, logits, -1e30))
    x = x + (attention @ value) @ layer["attention"]["output"]["kernel"]
    hidden = jax.nn.relu(norm(x, "feed_forward_norm", layer) @ layer["feed_forward"]["up"])
    x = x + hidden @ layer["feed_forward"]["down"]
    logits = norm(x, "final_norm") @ params["head"]["kernel"]
    scores = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(scores, batch["targets"][..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(batch["loss_mask"], chosen, 0.0)) / jnp.sum(batch["loss_mask"], dtype=jnp.float32)


def test_loss_and_gradients_are_those_of_an_independent_computation():
    config = tiny_config(sets=DENSE)
    gradients_themselves = optax.GradientTransformation(lambda params: (), lambda gradients, *_: (gradients, ()))
    state = first_state(config, gradients_themselves)
    step = jax.jit(make_train_step(config, gradients_themselves, lambda step: 0.0))
    batch = random_batch()
    batch["loss_mask"][1, 3:] = False
    after, metrics = step(state, batch)
    loss, expected = jax.jit(jax.value_and_grad(dense_loss))(state.params, batch)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert metrics["total_loss"] == metrics["loss"]
    ours = jax.tree.map(jnp.subtract, after.params, state.params)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_a_step_is_a_pure_function():
    _, step, _, state = prepare({})
    before = jax.tree.map(jnp.copy, state)
    first, second = step(state, random_batch()), step(state, random_batch())
    assert_trees_equal(first, second)
    assert_trees_equal(state, before)
    assert int(first[0].step) == 1


def test_steps_and_evaluations_are_compiled_once():
    """A step's state has the types of the state that it took, weak types too."""
    sets = {"model.moe.router": "deepseek"}
    config, _, _, state = prepare(sets)
    optimizer = make_optimizer(config.optimizer, config.steps)
    train = make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps))
    step = jax.jit(chex.assert_max_traces(train, n=1))
    evaluate = jax.jit(chex.assert_max_traces(make_eval_step(config), n=1))
    for seed in range(3):
        state, _ = step(state, random_batch(seed))
        evaluate(state, random_batch(seed))


def test_each_step_draws_anew_and_the_key_stays():
    _, step, _, state = prepare({})
    batch = random_batch()
    later, metrics = step(dataclasses.replace(state, step=jnp.int32(1)), batch)
    _, first = step(state, batch)
    assert metrics["load"]["layer_0"].tolist() != first["load"]["layer_0"].tolist()
    assert_trees_equal(later.rng, state.rng)


def test_padding_has_no_share_in_loss_gradient_or_routing():
    _, step, evaluation, state = prepare(STEERED)
    batch = random_batch()
    padded = {name: np.concatenate([value, np.zeros((2, S), value.dtype)]) for name, value in batch.items()}
    padded["tokens"][B:] = 7
    padded["targets"][B:] = 9
    (after, metrics), (padded_after, padded_metrics) = step(state, batch), step(state, padded)
    # Seats are counted in all groups: those of padding stand empty.
    assert padded_metrics.pop("seats_filled") == pytest.approx(metrics.pop("seats_filled") * B / (B + 2))
    for one, other in zip(jax.tree.leaves(metrics), jax.tree.leaves(padded_metrics), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(after.opt_state), jax.tree.leaves(padded_after.opt_state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    one, other = evaluation(state, batch), evaluation(state, padded)
    assert one["targets"] == other["targets"] == B * S
    np.testing.assert_allclose(one["loss_sum"], other["loss_sum"], rtol=1e-5)


def test_the_total_adds_each_loss_of_the_routers_with_its_coefficient():
    _, step, _, state = prepare(STEERED)
    _, metrics = step(state, random_batch())
    assert metrics["balance_loss"] >= 0.9
    assert metrics["z_loss"] > 1.0
    expected = metrics["loss"] + 0.5 * metrics["balance_loss"] + 0.25 * metrics["z_loss"]
    assert float(metrics["total_loss"]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({"model.moe.losses": {"balance_loss": 0.0}}, 0.0),
        ({"model.moe.losses": {"balance_loss": 0.5}}, 1.5),
        ({"model.moe.losses": {"balance_loss": 0.0, "z_loss": 0.25}}, 1.75),
        ({"model.moe.losses": {"balance_loss": 0.5, "z_loss": 0.25}}, 3.25),
        ({"model.moe.router": "st_moe"}, 0.01 * 3 + 0.001 * 7),
        ({"model.moe_layers": ()}, 0.0),
    ],
)
def test_each_coefficient_weighs_its_loss_and_no_other(sets, expected):
    config = tiny_config(sets=sets).model
    router = {"balance_loss": jnp.float32(3.0), "z_loss": jnp.float32(7.0)}
    routing = {f"layer_{i}": {"moe": {"router": router}} for i in config.moe_layers}
    assert float(auxiliary_loss(routing, config)) == pytest.approx(expected)


def test_the_coefficients_reach_the_gradient():
    norms = [prepare(sets)[1](prepare(sets)[3], random_batch())[1]["gradient_norm"] for sets in (SPARSE, STEERED)]
    assert float(norms[0]) != pytest.approx(float(norms[1]), rel=1e-3)


def test_metrics_are_means_over_layers_and_load_is_of_each():
    config = tiny_config(sets=SPARSE).model
    loads = {i: jnp.array([i, 1.0, 0, 0]) for i in (0, 1)}
    routing = {
        f"layer_{i}": {"moe": {"router": {"load": loads[i], "z_loss": jnp.float32(1 + 3 * i)}}}
        for i in config.moe_layers
    }
    metrics = routing_metrics(routing, config)
    assert float(metrics["z_loss"]) == 2.5
    assert {name: load.tolist() for name, load in metrics["load"].items()} == {
        "layer_0": [0, 1, 0, 0],
        "layer_1": [1, 1, 0, 0],
    }


def test_scanned_layers_report_what_unrolled_ones_do():
    _, step, _, state = prepare(STEERED)
    config, scanned_step, _, scanned = prepare(STEERED | {"model.scan_layers": True})
    assert_trees_equal(unstack_layers(scanned.params, config.model), state.params)
    (_, metrics), (_, scanned_metrics) = step(state, random_batch()), scanned_step(scanned, random_batch())
    assert list(metrics["load"]) == list(scanned_metrics["load"]) == ["layer_0", "layer_1"]
    assert metrics["load"]["layer_0"].tolist() != metrics["load"]["layer_1"].tolist()
    for one, other in zip(jax.tree.leaves(metrics), jax.tree.leaves(scanned_metrics), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def test_scanned_layers_are_told_apart_by_repeat_and_block():
    sets = SPARSE | {"model.num_layers": 6, "model.moe_layers": (1, 2, 4, 5), "model.scan_layers": True}
    blocks = {f"block_{i}": {"moe": {"router": {"load": jnp.array([[i], [3 + i]])}}} for i in (1, 2)}
    by_layer = routing_by_layer({"segment_0": blocks}, tiny_config(sets=sets).model)
    assert {name: layer["load"].tolist() for name, layer in by_layer.items()} == {
        f"layer_{i}": [i] for i in (1, 2, 4, 5)
    }


def test_in_bfloat16_parameters_optimizer_and_router_stay_float32():
    sets = SPARSE | {"model.dtype": "bfloat16", "model.num_layers": 1, "model.moe_layers": (0,)}
    config, step, _, state = prepare(sets)
    after, metrics = jax.eval_shape(step, state, random_batch())
    for tree in (after.params, after.opt_state, metrics):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} <= {"float32", "int32"}
    arrays = [jnp.asarray(random_batch()[name]) for name in ("tokens", "positions", "segment_ids")]
    _, collections = jax.eval_shape(
        lambda params: Decoder(config.model).apply(
            {"params": params},
            *arrays,
            rngs={RNG: jax.random.key(0)},
            capture_intermediates=lambda module, method: (
                isinstance(module, RouterModule | RMSNorm) and method == "__call__"
            ),
            mutable=["intermediates", METRICS],
        ),
        state.params,
    )
    layer = collections["intermediates"]["layer_0"]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(layer["moe"]["router"])} == {"float32", "int32", "bool"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(layer["feed_forward_norm"])} == {"bfloat16"}
