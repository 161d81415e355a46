"""Small models and batches that the tests of models share."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.configuration import build
from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.models.parameters import init_params
from moe_jax.models.routing_metrics import routing_values

VOCAB = 31


def config(moe=None, **fields):
    """Two layers of width 16; with `moe`, a mixture of 4 experts where `moe_layers` says, else in the second layer."""
    values = {"vocab_size": VOCAB, "num_layers": 2, "model_dim": 16, "ffn_dim": 24, "ffn": "swiglu"}
    values["attention"] = {"heads": 4} | fields.pop("attention", {})
    if moe is not None:
        values |= {"moe": {"num_experts": 4} | moe, "moe_layers": (1,)}
    return build(ModelConfig, values | fields)


def batch(rows=2, length=12, seed=0):
    """Tokens, positions and segment ids of whole documents."""
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, size=(rows, length)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
    return tokens, positions, jnp.ones_like(tokens)


# Once per configuration, by its text: it holds a dictionary and cannot be a key itself.
_COMPILED = {}
_STARTS = {}


def compiled(config, training=False):
    """The model's `apply`, compiled."""
    key = repr(config), training
    if key not in _COMPILED:
        _COMPILED[key] = jax.jit(make_model(config, training).apply)
    return _COMPILED[key]


def logits(config, params, inputs, training=False):
    """The model's logits, compiled."""
    return compiled(config, training)({"params": params}, *inputs, rngs={"routing": jax.random.key(5)})


def start(config):
    """Starting parameters, drawn once per configuration."""
    key = repr(config)
    if key not in _STARTS:
        _STARTS[key] = init_params(config, jax.random.key(0))
    return _STARTS[key]


def pair(rows=2, encoder=12, decoder=8):
    """The same of an encoder-decoder: the decoder's, then the encoder's."""
    return (*batch(rows, decoder, seed=1), *batch(rows, encoder))


def loss(config, params, inputs):
    """Mean cross-entropy of the next tokens, plus the routers' losses."""
    model = make_model(config, training=True)
    output, sown = model.apply({"params": params}, *inputs, rngs={"routing": jax.random.key(5)}, mutable=["routing"])
    log_probabilities = jax.nn.log_softmax(output[:, :-1])
    picked = jnp.take_along_axis(log_probabilities, inputs[0][:, 1:, None], axis=-1)
    routing = routing_values(sown.get("routing", {}), config)
    balance = [
        x for path, x in jax.tree_util.tree_leaves_with_path(routing) if "balance_loss" in jax.tree_util.keystr(path)
    ]
    return -picked.mean() + sum((0.01 * x.sum() for x in balance), start=jnp.float32(0.0))
