"""Starting parameters, the same for every way of compiling the same model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder

Params = dict[str, Any]


def init_params(config: ModelConfig, rng: Key[Array, ""]) -> Params:
    """Parameters drawn from `rng`; models that share a layer's name and shape share its start, whatever else differs.

    With `scan_layers` they are the unrolled model's, stacked, so that scanning changes no number.
    """
    unrolled = dataclasses.replace(config, scan_layers=False, remat=False)
    one = jax.ShapeDtypeStruct((1, unrolled.moe.group_size or 1 if unrolled.moe else 1), jnp.int32)
    # Lazily: parameters are drawn, but nothing is computed with them.
    variables = Decoder(unrolled).lazy_init({"params": rng, "routing": rng}, one, mutable=["params"])
    params = variables["params"]
    return stack_layers(params, config) if config.scan_layers else params


def stack_layers(params: Params, config: ModelConfig) -> Params:
    """From `layer_0`, `layer_1`, ... to one `layers` whose arrays have a leading axis over repeats of the pattern."""
    layers = [params[f"layer_{i}"] for i in range(config.num_layers)]
    stacked = {
        f"block_{i}": jax.tree.map(lambda *xs: jnp.stack(xs), *layers[i :: config.period]) for i in range(config.period)
    }
    rest = {name: value for name, value in params.items() if not name.startswith("layer_")}
    return rest | {"layers": stacked}


def unstack_layers(params: Params, config: ModelConfig) -> Params:
    """The inverse of `stack_layers`."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    for i in range(config.num_layers):
        repeat, block = divmod(i, config.period)
        rest[f"layer_{i}"] = jax.tree.map(lambda x, r=repeat: x[r], params["layers"][f"block_{block}"])
    return rest
