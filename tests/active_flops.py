"""What XLA counts of a model whose experts have as many seats as tokens ask for: then what is executed is active."""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax.layers.dropout import DROPOUT
from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.models.parameters import init_params
from moe_jax.routing.router import RNG
from moe_jax.training.config import TrainConfig


def with_seats_for_all(model: ModelConfig) -> ModelConfig:
    """The same model in seats as many as choices, without what draws and in float32, none of which is a product."""
    model = dataclasses.replace(model, dropout=0.0, dtype="float32", loss_chunk=None)
    if not model.moe_layers:
        return model
    options = {name: value for name, value in model.moe.router_options.items() if name not in ("exploration", "rounds")}
    fields = {"capacity_factor": 1.0, "execution": "padded", "dropout": None, "router_dtype": "float32"}
    return dataclasses.replace(model, moe=dataclasses.replace(model.moe, router_options=options, **fields))


def xla_flops_per_token(config: TrainConfig) -> float:
    """Operations of a forward pass per token of all texts, norms and softmax included."""
    model, batch = with_seats_for_all(config.model), config.data.batch_size
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    texts = [jax.ShapeDtypeStruct((batch, length), jnp.int32) for length in config.lengths]

    def logits(params, *texts):
        # A decoder's text, its positions and its documents; then those of an encoder.
        inputs = [part for text in reversed(texts) for part in (text, text, jnp.ones_like(text))]
        rngs = {RNG: jax.random.key(0), DROPOUT: jax.random.key(0)}
        return make_model(model, True).apply({"params": params}, *inputs, rngs=rngs)

    counted = jax.jit(logits).lower(params, *texts).cost_analysis()["flops"]
    return counted / (batch * sum(config.lengths))
