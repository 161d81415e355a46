"""The assignments that a model's routers made, as the model made them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from moe_jax.analysis.traces import trace_assignments
from moe_jax.models.decoder import Decoder
from moe_jax.models.encoder_decoder import EncoderDecoder
from moe_jax.models.parameters import init_router_state
from moe_jax.models.paths import stack_layers
from moe_jax.models.routing_metrics import routing_by_layer, routing_values
from tests.models import small


@pytest.fixture(scope="module")
def model():
    """Four layers, two of them sparse, in which capacity binds; two documents and padding."""
    moe = {"router": {"kind": "gshard", "second_policy": "all"}, "k": 2, "capacity_factor": 0.5}
    config = small.config(moe, num_layers=4, moe_layers=(1, 3))
    tokens, positions, segments = small.batch()
    return config, small.start(config), (tokens, positions, segments.at[0, 5:].set(2).at[1, 9:].set(0))


def test_they_are_those_that_the_model_counted(model):
    config, params, batch = model
    traced = trace_assignments(config, params, *batch)
    _, sown = jax.jit(functools.partial(Decoder(config).apply, mutable=["routing"]))({"params": params}, *batch)
    counted = routing_by_layer(routing_values(sown["routing"], config), config)
    assert traced.keys() == counted.keys() == {"layer_1", "layer_3"}
    for layer, assignment in traced.items():
        requests = np.bincount(np.asarray(assignment.expert)[np.asarray(assignment.requested)], minlength=4)
        np.testing.assert_allclose(requests / requests.sum(), counted[layer]["load"], rtol=1e-6)
        dropped = 1 - np.asarray(assignment.kept).sum() / requests.sum()
        np.testing.assert_allclose(dropped, counted[layer]["fraction_dropped"], rtol=1e-6)
        assert dropped > 0
        assert not assignment.dispatch_mask()[1, 9:].any()


def test_a_text_shorter_than_a_group_is_a_group(model):
    """As where each sequence is a group anyway."""
    config, params, batch = model
    short = [x[:1, :5] for x in batch]
    wide = dataclasses.replace(config, moe=dataclasses.replace(config.moe, group_size=24))
    jax.tree.map(
        np.testing.assert_array_equal,
        trace_assignments(wide, params, *short),
        trace_assignments(config, params, *short),
    )
    (first, *_) = trace_assignments(wide, params, *batch).values()
    assert first.num_tokens == 24


def test_scanned_layers_are_traced_as_plain_ones(model):
    config, params, batch = model
    scanned = dataclasses.replace(config, scan_layers=True, remat=True)
    plain = trace_assignments(config, params, *batch)
    traced = trace_assignments(scanned, stack_layers(params, config), *batch)
    jax.tree.map(np.testing.assert_array_equal, plain, traced)


@pytest.mark.parametrize("scanned", [False, True])
def test_both_stacks_and_mixtures_in_the_attention_are_traced(scanned):
    moe = {"router": "switch", "capacity_factor": 0.5, "places": ("feed_forward", "attention")}
    config = small.config(moe, architecture="encoder_decoder", scan_layers=scanned, num_layers=4, moe_layers=(1, 3))
    params = small.start(config)
    traced = trace_assignments(config, params, *small.pair())
    model = functools.partial(EncoderDecoder(config).apply, mutable=["routing"])
    _, sown = jax.jit(model)({"params": params}, *small.pair())
    counted = routing_by_layer(routing_values(sown["routing"], config), config)
    assert traced.keys() == counted.keys()
    assert len(traced) == 2 * 2 * 3
    for name, assignment in traced.items():
        assert assignment.num_tokens == (12 if name.startswith("encoder") else 8)
        requests = np.bincount(np.asarray(assignment.expert).reshape(-1), minlength=4)
        np.testing.assert_allclose(requests / requests.sum(), counted[name]["load"], rtol=1e-6)


@pytest.mark.parametrize("scanned", [False, True])
def test_what_routers_remember_is_heeded(scanned):
    """A selection bias that no score can outweigh sends all tokens to two experts."""
    moe = {"router": "deepseek", "k": 2, "capacity_factor": None}
    config = small.config(moe, num_layers=4, moe_layers=(1, 3), scan_layers=scanned)
    favour = jax.numpy.asarray([9.0, 0.0, 9.0, 0.0])
    state = jax.tree.map(lambda bias: bias + jax.numpy.broadcast_to(favour, bias.shape), init_router_state(config))
    traced = trace_assignments(config, small.start(config), *small.batch(), router_state=state)
    for assignment in traced.values():
        assert set(np.asarray(assignment.expert).reshape(-1).tolist()) == {0, 2}
