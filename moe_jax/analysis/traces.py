"""Who is routed where in a model. B batch, S sequence."""

import dataclasses
import functools

import jax
from jaxtyping import Array, Int

from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.models.parameters import Params, init_router_state, unstack_layers
from moe_jax.routing import Router
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.soft_moe import Slots
from moe_jax.routing.statistics import METRICS


def trace_assignments(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"] | None = None,
    segment_ids: Int[Array, "B S"] | None = None,
    router_state: Params | None = None,
) -> dict[str, Assignment | Slots]:
    """What the router of each sparse layer decides on a batch, by the layer's name, `layer_i`.

    The evaluation capacity holds, groups are those of `config.moe.group_size`, and a router that draws draws the same
    each time.

    Args:
      config: the model's shape; scanned or recomputed layers give what plain ones do.
      params: the model's parameters.
      tokens, positions, segment_ids: see `Decoder`.
      router_state: what its routers remember; None takes what they start with.
    """
    state = init_router_state(config) if router_state is None else router_state
    if config.scan_layers:
        params, state = unstack_layers(params, config), unstack_layers(state, config) if state else state
    plain = dataclasses.replace(config, scan_layers=False, remat=False, remat_saves=())
    run = functools.partial(
        Decoder(plain).apply,
        capture_intermediates=lambda module, method: isinstance(module, Router) and method == "__call__",
        mutable=["intermediates", METRICS],
        rngs={RNG: jax.random.key(0)},
    )
    _, collections = jax.jit(run)({"params": params, STATE: state}, tokens, positions, segment_ids)
    return {
        f"layer_{i}": collections["intermediates"][f"layer_{i}"]["moe"]["router"]["__call__"][0]
        for i in config.moe_layers
    }
