"""Starting parameters, the same for every way of compiling the same model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.routing.router import RNG, STATE

Params = dict[str, Any]

STACKS = ("encoder", "decoder")
"""Where a model of two stacks has what belongs to each."""


def init_params(config: ModelConfig, rng: Key[Array, ""]) -> Params:
    """Parameters drawn from `rng`; models that share a layer's name and shape share its start, whatever else differs.

    With `scan_layers` they are the unrolled model's, stacked, so that scanning changes no number.
    """
    params = _init(config, rng, "params")
    return stack_layers(params, config) if config.scan_layers else params


def map_stacks(function: Callable[[Params], Params], tree: Params, config: ModelConfig) -> Params:
    """`function` of what a tree of a model has for its one stack, or for its encoder and for its decoder."""
    if config.architecture == "decoder":
        return function(tree)
    return {name: function(part) if name in STACKS else part for name, part in tree.items()}


def init_router_state(config: ModelConfig) -> Params:
    """What the routers remember before the first step; {} where they remember nothing."""
    state = _init(config, jax.random.key(0), STATE)
    return stack_layers(state, config) if config.scan_layers and state else state


def _init(config: ModelConfig, rng: Key[Array, ""], collection: str) -> Params:
    unrolled = dataclasses.replace(config, scan_layers=False, remat=False, remat_saves=())
    one = jax.ShapeDtypeStruct((1, unrolled.moe.group_size or 1 if unrolled.moe else 1), jnp.int32)
    texts = (one,) if config.architecture == "decoder" else (one, None, None, one)
    # Lazily: parameters are drawn, but nothing is computed with them.
    variables = make_model(unrolled).lazy_init({"params": rng, RNG: rng}, *texts, mutable=["params", STATE])
    return variables.get(collection, {})


def stack_layers(params: Params, config: ModelConfig) -> Params:
    """From `layer_0`, `layer_1`, ... to one `layers` whose arrays have a leading axis over repeats of the pattern."""

    def stack(params: Params) -> Params:
        stacked = {}
        for i in range(config.period):
            names = [f"layer_{j}" for j in range(i, config.num_layers, config.period)]
            if names[0] in params:
                stacked[f"block_{i}"] = jax.tree.map(lambda *xs: jnp.stack(xs), *(params[name] for name in names))
        rest = {name: value for name, value in params.items() if not name.startswith("layer_")}
        return rest | {"layers": stacked}

    return map_stacks(stack, params, config)


def unstack_layers(params: Params, config: ModelConfig) -> Params:
    """The inverse of `stack_layers`."""

    def unstack(params: Params) -> Params:
        rest = {name: value for name, value in params.items() if name != "layers"}
        for i in range(config.num_layers):
            repeat, block = divmod(i, config.period)
            if f"block_{block}" in params["layers"]:
                rest[f"layer_{i}"] = jax.tree.map(lambda x, r=repeat: x[r], params["layers"][f"block_{block}"])
        return rest

    return map_stacks(unstack, params, config)
