"""Models whose layers differ: in router, experts, attention and losses; scanned or not, each layer is its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.language_model import make_model
from moe_jax.models.parameters import init_params, init_router_state
from moe_jax.models.paths import LayerPath, MixturePath, layer_of, layers_at, mixtures_of, stack_layers, unstack_layers
from moe_jax.models.routing_metrics import auxiliary_loss, next_router_state, routing_metrics, routing_values
from moe_jax.routing.router import STATE
from tests.comparison import assert_close, assert_trees_close
from tests.models import small

FREE = {"capacity_factor": None, "group_size": 6}
HASHED = FREE | {"num_experts": 2, "router": "hash"}
BIASED = FREE | {
    "num_experts": 4,
    "router": {"kind": "deepseek", "renormalize": False},
    "losses": {"balance_loss": 0.5},
}
# A dense layer; two with hash routing; two with a selection bias; two with a bias, a window and another coefficient.
CONFIG = small.config(
    BIASED,
    num_layers=7,
    moe_layers=(1, 2, 3, 4, 5, 6),
    variants=[
        {"layers": (1, 2), "moe": HASHED, "ffn_dim": 8},
        {
            "layers": (5, 6),
            "attention": {"kind": "sliding_window", "heads": 2, "window": 4},
            "moe": BIASED | {"losses": {"balance_loss": 0.25, "z_loss": 0.125}},
        },
    ],
)
INPUTS = small.batch()


def run(config, params, state):
    """Logits, and what routers sowed, of a forward pass in training."""
    apply = jax.jit(
        lambda params: make_model(config, True).apply({"params": params, STATE: state}, *INPUTS, mutable=["routing"])
    )
    logits, sown = apply(params)
    return logits, routing_values(sown["routing"], config)


@pytest.fixture(scope="module")
def unrolled():
    params, state = init_params(CONFIG, jax.random.key(0)), init_router_state(CONFIG)
    return params, state, *run(CONFIG, params, state)


def test_layers_have_their_own_shapes(unrolled):
    params, state, _, routing = unrolled
    assert [(len(segment.pattern), segment.repeats) for segment in CONFIG.segments] == [(1, 1), (1, 2), (1, 2), (1, 2)]
    assert params["layer_1"]["moe"]["experts_up"].shape == (2, 16, 8)
    assert params["layer_3"]["moe"]["experts_up"].shape == (4, 16, 24)
    assert params["layer_5"]["attention"]["query"]["kernel"].shape == (16, 16)
    assert set(state) == {"layer_3", "layer_4", "layer_5", "layer_6"}
    assert routing["layer_1"]["moe"]["router"]["load"].shape == (2,)


def test_scanned_segments_are_the_layers_one_by_one(unrolled):
    params, state, logits, routing = unrolled
    config = dataclasses.replace(CONFIG, scan_layers=True)
    assert_trees_close(unstack_layers(stack_layers(params, config), config), params, 0.0)
    assert jax.tree.map(jnp.shape, stack_layers(params, config)) == jax.tree.map(
        jnp.shape, init_params(config, jax.random.key(0))
    )
    scanned, sown = run(config, stack_layers(params, config), stack_layers(state, config))
    assert_close(scanned, logits)
    for path, mixture in mixtures_of(routing, CONFIG):
        assert_trees_close(dict(mixtures_of(sown, config))[path], mixture)
    assert_close(auxiliary_loss(sown, config), auxiliary_loss(routing, CONFIG))
    stepped = next_router_state(config, stack_layers(state, config), sown)
    assert_trees_close(unstack_layers(stepped, config), next_router_state(CONFIG, state, routing))


def test_losses_are_means_over_the_layers_that_have_them_times_their_own_coefficients(unrolled):
    *_, routing = unrolled
    sown = {i: routing[f"layer_{i}"]["moe"]["router"] for i in range(3, 7)}
    expected = sum(c * float(sown[i]["balance_loss"]) / 4 for i, c in ((3, 0.5), (4, 0.5), (5, 0.25), (6, 0.25)))
    # The coefficient of the z-loss is 0 in layers 3 and 4, which count in the mean.
    expected += sum(0.125 * float(sown[i]["z_loss"]) / 4 for i in (5, 6))
    assert_close(auxiliary_loss(routing, CONFIG), expected)
    metrics = routing_metrics(routing, CONFIG)
    assert_close(metrics["balance_loss"], np.mean([sown[i]["balance_loss"] for i in range(3, 7)]))
    assert set(metrics["load"]) == {f"layer_{i}" for i in range(1, 7)}


def test_only_routers_with_a_state_step(unrolled):
    _, state, _, routing = unrolled
    stepped = next_router_state(CONFIG, state, routing)
    for i in range(3, 7):
        load = np.asarray(routing[f"layer_{i}"]["moe"]["router"]["load"])
        expected = 0.001 * np.sign(load.mean() - load)
        assert_close(stepped[f"layer_{i}"]["moe"]["router"]["bias"], expected - expected.mean())


def test_a_window_hides_what_is_far():
    """Two layers that see 4 tokens each: the last of 12 tokens depends on the 6 before it, and on no earlier one."""
    window = {"kind": "sliding_window", "window": 4, "positions": "none"}
    config = small.config(attention=window)
    params = init_params(config, jax.random.key(0))
    embedding = params["embedding"]["embedding"]

    def last(tokens):
        return small.logits(config, params, (tokens, *INPUTS[1:]))[:, -1]

    before = last(INPUTS[0])
    assert embedding.shape[0] == small.VOCAB
    for place in range(12):
        other = last(INPUTS[0].at[:, place].add(1) % small.VOCAB)
        assert (np.abs(other - before).max() > 0) == (place >= 12 - 1 - 2 * 3), place


@pytest.mark.parametrize("scan", [False, True])
def test_a_path_is_where_a_layer_is(scan):
    config = dataclasses.replace(CONFIG, scan_layers=scan)
    params = init_params(config, jax.random.key(0))
    plain = init_params(CONFIG, jax.random.key(0))
    for index in range(7):
        assert_trees_close(layer_of(params, LayerPath("", index), config), plain[f"layer_{index}"], 0.0)
    # From the path of a leaf back to its layers.
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(key.key for key in path)
        if names[0].startswith(("layer_", "segment_")) and names[-2:] == ("output", "kernel"):
            found += layers_at(names, config)
    assert found == [LayerPath("", index) for index in range(7)]


def test_names_in_metrics():
    assert LayerPath("", 3).name == "layer_3"
    assert MixturePath(LayerPath("encoder", 3), "query_moe").name == "encoder_query_layer_3"
    assert MixturePath(LayerPath("", 3), "moe").name == "layer_3"
