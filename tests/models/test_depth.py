"""Mixture-of-Depths: a block on the chosen tokens is a plain block on a sequence of them alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.configuration import ConfigError
from moe_jax.layers.attention.context import Attending, Context
from moe_jax.layers.attention.masks import attention_mask
from moe_jax.layers.depth import best_tokens, depth_metrics
from moe_jax.layers.mode import Mode
from moe_jax.layers.positions import rotary_angles
from moe_jax.models.block import Block, DepthBlock
from moe_jax.models.decoder import Decoder
from moe_jax.models.routing_metrics import depth_by_layer, routing_values
from moe_jax.routing.statistics import values
from tests.comparison import assert_close, assert_trees_close
from tests.models import small

B, S, D = 2, 10, 16
DEPTH = {"layers": (1,), "capacity": 0.4}


def pieces(positions="rope", seed=0):
    """Arguments of a block: documents of 6 and 4 tokens, and 8 tokens with padding; and a bias of distances."""
    rng = np.random.default_rng(seed)
    config = small.config(depth=DEPTH, attention={"positions": positions})
    x = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    segments = jnp.asarray([[1] * 6 + [2] * 4, [1] * 8 + [0] * 2], jnp.int32)
    place = jnp.asarray([[*range(6), *range(4)], [*range(8), 0, 0]], jnp.int32)
    angles = rotary_angles(place, 4, 100.0) if positions == "rope" else None
    bias = None if angles else jnp.asarray(rng.normal(size=(1, 4, S, S)), jnp.float32)
    return config, x, segments, place, angles, bias


def start(block, *arguments):
    params = jax.jit(block.init)(jax.random.key(0), *arguments)["params"]
    return params | {"depth_kernel": jax.random.normal(jax.random.key(1), (D,))}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("positions", ["rope", "t5"])
def test_chosen_tokens_are_a_sequence_of_their_own(positions, training):
    config, x, segments, place, angles, bias = pieces(positions)
    layer, mode = config.layer(1), Mode(training)

    def context(segments, valid, place, angles, bias):
        attending = Attending(attention_mask(segments, True), angles, bias)
        return Context(place, place, valid, (attending,), kinds=(layer.attention,))

    block, whole = DepthBlock(layer, mode, True), context(segments, segments != 0, place, angles, bias)
    params = start(block, x, whole)
    actual, sown = jax.jit(functools.partial(block.apply, mutable=["routing"]))({"params": params}, x, whole)
    score = np.asarray(x, np.float64) @ np.asarray(params["depth_kernel"], np.float64)
    plain = {name: value for name, value in params.items() if name != "depth_kernel"}
    expected, share = np.asarray(x, np.float64).copy(), 0
    for row in range(B):
        valid = np.flatnonzero(segments[row])
        best = np.sort(valid[np.argsort(-score[row, valid])[:4]])
        chosen = best if training else valid[score[row, valid] > 0]
        share += len(chosen) / 18
        seen = context(
            segments[row : row + 1, chosen],
            jnp.ones((1, len(chosen)), bool),
            place[row : row + 1, chosen],
            rotary_angles(place[row : row + 1, chosen], 4, 100.0) if angles else None,
            None if bias is None else bias[:, :, chosen[:, None], chosen[None]],
        )
        alone = jax.jit(Block(layer, mode, True).apply)({"params": plain}, x[row : row + 1, chosen], seen)
        change = np.asarray(alone[0], np.float64) - np.asarray(x[row, chosen], np.float64)
        expected[row, chosen] += score[row, chosen][:, None] * change
    assert_close(actual, expected)
    assert_close(sown["routing"]["depth_share"].value, share)


def test_best_tokens_are_the_largest_scores_in_order():
    score = jnp.asarray([[0.3, 2.0, -1.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    valid = jnp.asarray([[True, True, True, True], [False, False, False, True]])
    index, chosen = best_tokens(score, valid, 0.5)
    np.testing.assert_array_equal(index[0], [1, 3])
    np.testing.assert_array_equal(chosen, [[False, True, False, True], [False, False, False, True]])


def test_metrics_are_their_definitions():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(B, S)) * 2
    best, valid = rng.random((B, S)) < 0.4, rng.random((B, S)) < 0.8
    positive = score > 0
    arrays = (jnp.asarray(a) for a in (score.astype(np.float32), best, positive, best, valid))
    metrics = values(depth_metrics(*arrays))
    probability = 1 / (1 + np.exp(-score))
    assert_close(metrics["depth_loss"], -np.log(np.where(best, probability, 1 - probability))[valid].mean())
    assert_close(metrics["depth_accuracy"], (positive == best)[valid].mean())
    assert_close(metrics["depth_share"], best[valid].mean())


def model(**fields):
    return small.config(depth=DEPTH | {"layers": (1, 3)}, num_layers=4, **fields)


def sharpened(config):
    """Scores of order 1, so that about half of them are positive."""
    params = small.start(config)
    return jax.tree_util.tree_map_with_path(lambda path, p: p * 50.0 if "depth" in str(path[-1]) else p, params)


def test_evaluation_is_causal_and_training_is_not():
    config = model()
    params, (tokens, *rest) = sharpened(config), small.batch()
    other = tokens.at[:, 7:].set((tokens[:, 7:] + 11) % small.VOCAB)
    for training in (False, True):
        before, after = (small.logits(config, params, (t, *rest), training)[:, :7] for t in (tokens, other))
        assert (before == after).all() != training


def test_scanned_and_recomputed_layers_are_the_unrolled_ones():
    inputs = small.batch()

    def run(**fields):
        config = model(**fields)
        params = sharpened(config)

        def total(params):
            logits, sown = Decoder(config, True).apply({"params": params}, *inputs, mutable=["routing"])
            routing = routing_values(sown["routing"], config)
            losses = [layer["depth_loss"] for layer in depth_by_layer(routing, config).values()]
            return (jax.nn.log_softmax(logits)[..., 0]).mean() + sum(losses)

        return jax.jit(jax.value_and_grad(total))(params)

    value, gradients = run()
    assert jnp.abs(gradients["layer_1"]["depth_kernel"]).max() > 1e-3
    assert_trees_close(run(remat=True), (value, gradients))
    scanned_value, scanned = run(scan_layers=True, remat=True)
    assert_close(scanned_value, value)
    assert_close(scanned["segment_0"]["block_1"]["depth_kernel"][1], gradients["layer_3"]["depth_kernel"])


def test_counts_are_those_of_the_parameters_and_of_the_share():
    config, dense = model(), small.config(num_layers=4)
    assert count_parameters(config).total == sum(p.size for p in jax.tree.leaves(sharpened(config)))
    counted, base = flops_per_token(config, 10), flops_per_token(dense, 10)
    assert counted.ffn == pytest.approx(base.ffn * (2 + 2 * 0.4) / 4, abs=1)
    assert counted.attention_scores == pytest.approx(base.attention_scores * (2 + 2 * 0.4**2) / 4, abs=1)
    assert counted.router == 2 * 2 * D


@pytest.mark.parametrize(
    ("depth", "says"),
    [
        ({"layers": (1, 9)}, r"depth\.layers is \(1, 9\); accepted: increasing layer indices below"),
        ({"layers": (1,), "capacity": 0.0}, r"depth\.capacity is 0\.0; accepted: above 0, to 1"),
        ({"layers": (1,), "coefficient": -1.0}, r"depth\.coefficient is -1\.0"),
    ],
)
def test_what_cannot_be_is_refused(depth, says):
    with pytest.raises(ConfigError, match=says):
        small.config(depth=depth)
    with pytest.raises(ConfigError, match=r"depth\.layers is \(1,\); accepted: layers that are not in moe"):
        small.config({"router": "switch"}, depth={"layers": (1,)})
