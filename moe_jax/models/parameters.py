"""Parameters of a model: declared from its configuration, and drawn, the same for every way of compiling it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.models.layer_spec import DEPTH, LayerSpec
from moe_jax.models.paths import DECODER, ENCODER, stack_layers
from moe_jax.models.stack import relative_tables
from moe_jax.routing.router import RNG, STATE
from moe_jax.runtime.parameters import Parameter, within

Params = dict[str, Any]


def init_params(config: ModelConfig, rng: Key[Array, ""]) -> Params:
    """Draws parameters from `rng`; models that share a layer's name and shape share its start, whatever else differs.

    With `scan_layers` they are the unrolled model's, stacked, so that scanning changes no number.
    """
    params = _init(config, rng, "params")
    return stack_layers(params, config) if config.scan_layers else params


def init_router_state(config: ModelConfig) -> Params:
    """Returns what the routers remember before the first step; {} where they remember nothing."""
    state = _init(config, jax.random.key(0), STATE)
    return stack_layers(state, config) if config.scan_layers and state else state


def _init(config: ModelConfig, rng: Key[Array, ""], collection: str) -> Params:
    unrolled = dataclasses.replace(config, scan_layers=False, remat=False, remat_saves=())
    # The shortest sequence that every mixture can cut into its groups.
    length = math.lcm(*(moe.group_size or 1 for moe in config.mixtures))
    one = jax.ShapeDtypeStruct((1, length), jnp.int32)
    texts = (one,) if len(config.stacks) == 1 else (one, None, None, one)
    # Lazily: parameters are drawn, but nothing is computed with them.
    variables = make_model(unrolled).lazy_init({"params": rng, RNG: rng}, *texts, mutable=["params", STATE])
    return variables.get(collection, {})


def declare_parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Declares every parameter of a model by its path in the tree of parameters ("layer_0/attention/query/kernel")."""
    embedding = Parameter((config.vocab_size, config.model_dim), (None, "fsdp"), multiplies=False)
    declared = {"embedding/embedding": embedding}
    if not config.tie_embeddings:
        declared["head/kernel"] = Parameter((config.model_dim, config.vocab_size), ("fsdp", "tensor"))
    if len(config.stacks) == 1:
        return declared | declare_stack(config, cross=False)
    encoder, decoder = config.stacks
    return (
        declared
        | within(ENCODER, declare_stack(encoder, cross=False))
        | within(DECODER, declare_stack(decoder, cross=True))
    )


def declare_stack(config: ModelConfig, cross: bool) -> dict[str, Parameter]:
    """Declares the parameters of one stack; `cross` says whether its layers attend to an encoder."""
    declared = within("final_norm", config.norm.parameters(config.model_dim))
    for name, (positions, heads) in relative_tables(config).items():
        declared |= within(name, positions.parameters(heads))
    if not config.scan_layers:
        for i, spec in enumerate(config.layers):
            declared |= within(f"layer_{i}", declare_layer(spec, config, cross))
        return declared
    for number, segment in enumerate(config.segments):
        for i, spec in enumerate(segment.pattern):
            layer = within(f"segment_{number}/block_{i}", declare_layer(spec, config, cross))
            declared |= {path: parameter.stacked(segment.repeats) for path, parameter in layer.items()}
    return declared


def declare_layer(spec: LayerSpec, config: ModelConfig, cross: bool) -> dict[str, Parameter]:
    """Declares the parameters of one layer."""
    declared = {}
    for part, parameters in spec.parameters(config.model_dim, cross).items():
        # The router of a layer that only some tokens run stands in the layer itself.
        declared |= (
            {f"depth_{name}": p for name, p in parameters.items()} if part == DEPTH else within(part, parameters)
        )
    return declared
