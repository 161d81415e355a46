"""What holds of an encoder-decoder whatever its weights: who sees whom, packing, scans, mixtures in the attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.models.encoder_decoder import EncoderDecoder
from moe_jax.models.language_model import make_model
from moe_jax.models.paths import unstack_layers
from moe_jax.models.routing_metrics import routing_by_layer, routing_values
from tests.comparison import assert_close, assert_trees_close
from tests.models import small
from tests.models.test_decoder import sharpen

T5 = {"architecture": "encoder_decoder", "attention": {"positions": "t5"}, "ffn": "relu"}
FREE = {"router": "switch", "capacity_factor": None}
EVERYWHERE = FREE | {"places": ("feed_forward", "attention")}
MODELS = {"dense": None, "switch": FREE, "everywhere": EVERYWHERE}


def build(name, **fields):
    config = small.config(MODELS[name], **(T5 | fields))
    return config, sharpen(small.start(config))


@pytest.mark.parametrize("name", MODELS)
def test_the_decoder_is_causal_and_the_encoder_is_not(name):
    config, params = build(name)
    inputs = small.pair()
    before = small.logits(config, params, inputs)
    later = small.logits(config, params, (inputs[0].at[:, 5:].add(1) % small.VOCAB, *inputs[1:]))
    np.testing.assert_array_equal(before[:, :5], later[:, :5])
    assert (before[:, 5:] != later[:, 5:]).any()
    # The last token of the encoder's text reaches the first of the decoder's.
    other = small.logits(config, params, (*inputs[:3], inputs[3].at[:, -1].add(1) % small.VOCAB, *inputs[4:]))
    assert (np.abs(before - other).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize("name", MODELS)
def test_packed_pairs_are_as_pairs_alone(name):
    """Two pairs and padding in one row of each stack; no capacity, so nothing else joins them."""
    config, params = build(name, attention={"positions": "rope"})
    tokens, _, _, encoder_tokens, _, _ = small.pair(rows=1)

    def packed(first, second, padding):
        positions = jnp.concatenate([jnp.arange(first), jnp.arange(second), jnp.zeros(padding, jnp.int32)])
        return positions[None].astype(jnp.int32), jnp.asarray([[1] * first + [2] * second + [0] * padding], jnp.int32)

    together = small.logits(config, params, (tokens, *packed(3, 4, 1), encoder_tokens, *packed(5, 6, 1)))

    def alone(own, seen):
        rows, memory = tokens[:, own], encoder_tokens[:, seen]
        return small.logits(
            config, params, (rows, *packed(rows.shape[1], 0, 0), memory, *packed(memory.shape[1], 0, 0))
        )

    assert_close(together[:, :3], alone(slice(0, 3), slice(0, 5)))
    assert_close(together[:, 3:7], alone(slice(3, 7), slice(5, 11)))


@pytest.mark.parametrize("name", ["switch", "everywhere"])
def test_padding_takes_no_seat_in_either_stack(name):
    moe = MODELS[name] | {"capacity_factor": 0.5}
    config = small.config(moe, **T5)
    params = sharpen(small.start(config))
    tokens, positions, segments, encoder_tokens, encoder_positions, encoder_segments = small.pair()
    segments, encoder_segments = segments.at[:, 6:].set(0), encoder_segments.at[:, 9:].set(0)
    texts = [
        small.logits(config, params, (t, positions, segments, e, encoder_positions, encoder_segments))
        for t, e in ((tokens, encoder_tokens), (tokens.at[:, 6:].set(3), encoder_tokens.at[:, 9:].set(3)))
    ]
    np.testing.assert_array_equal(texts[0][:, :6], texts[1][:, :6])


@pytest.mark.parametrize("name", MODELS)
def test_scanned_and_recomputed_layers_are_the_same_model(name):
    fields = {"num_layers": 4} | ({} if name == "dense" else {"moe_layers": (1, 3)})
    config = small.config(MODELS[name], **T5, **fields)
    scanned = dataclasses.replace(config, scan_layers=True, remat=True)
    params, stacked = small.start(config), small.start(scanned)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked, scanned), params)
    inputs = small.pair()
    assert_close(small.logits(scanned, stacked, inputs), small.logits(config, params, inputs))
    plain, other = (
        jax.jit(jax.grad(lambda p, c=c: small.loss(c, p, inputs)))(p) for c, p in ((config, params), (scanned, stacked))
    )
    assert_trees_close(unstack_layers(other, scanned), plain, 2e-5)


def test_scores_of_targets_are_those_of_the_logits():
    config, params = build("switch")
    inputs = small.pair()
    targets = inputs[0][:, ::-1]
    expected = -jnp.take_along_axis(
        jax.nn.log_softmax(small.logits(config, params, inputs)), targets[..., None], axis=-1
    )[..., 0]
    for chunk in (None, 4):
        nats = functools.partial(EncoderDecoder(dataclasses.replace(config, loss_chunk=chunk)).apply, method="nats")
        assert_close(jax.jit(nats)({"params": params}, *inputs, targets=targets), expected)


def test_mixtures_are_reported_by_stack_and_place():
    config, params = build("everywhere")
    apply = functools.partial(make_model(config, True).apply, mutable=["routing"])
    _, sown = jax.jit(apply)({"params": params}, *small.pair(), rngs={"routing": jax.random.key(0)})
    by_layer = routing_by_layer(routing_values(sown["routing"], config), config)
    assert list(by_layer) == [
        f"{stack}_{place}layer_1" for stack in ("encoder", "decoder") for place in ("", "query_", "key_value_")
    ]
    assert all(metrics["load"].shape == (4,) for metrics in by_layer.values())


def test_attention_by_one_linear_expert_is_dense_attention():
    """With one expert, which then has weight 1, its matrices are those of queries, keys and values."""
    moe = {"num_experts": 1, "router": "switch", "capacity_factor": None, "places": ("attention",)}
    sparse, dense = small.config(moe, **T5), small.config(**T5)
    params = small.start(sparse)

    def plain(tree):
        if "query_moe" not in tree:
            return {name: plain(part) if isinstance(part, dict) else part for name, part in tree.items()}
        tree = dict(tree)
        query = tree.pop("query_moe")["experts_map"][0]
        key, value = jnp.split(tree.pop("key_value_moe")["experts_map"][0], 2, axis=-1)
        kernels = {"query": query, "key": key, "value": value}
        return tree | {"attention": tree["attention"] | {name: {"kernel": k} for name, k in kernels.items()}}

    inputs = small.pair()
    assert_close(small.logits(sparse, params, inputs), small.logits(dense, plain(params), inputs))
    assert jax.tree.map(jnp.shape, plain(params)) == jax.tree.map(jnp.shape, small.start(dense))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"causal": False}, "causal is False; accepted: True, with architecture='encoder_decoder'"),
        ({"depth": {"layers": (0,)}}, "depth is .* accepted: None, with architecture='encoder_decoder'"),
        ({"dropout": 1.0}, "dropout is 1.0; accepted: 0 to below 1"),
        (
            {"moe": EVERYWHERE | {"num_experts": 4, "combine": "mix"}},
            "moe.combine is 'mix'; accepted: output, for",
        ),
        ({"moe": {"num_experts": 4, "places": ()}}, r"moe.places is \(\); accepted: one or both of feed_forward"),
        ({"moe": {"num_experts": 4, "dropout": -0.1}}, "moe.dropout is -0.1; accepted: 0 to below 1, or None"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        small.config(**(T5 | fields))
