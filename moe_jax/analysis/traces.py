"""Who is routed where in a model. B batch, S sequence."""

import dataclasses
import functools

import jax
from jaxtyping import Array, Int

from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.models.parameters import Params, init_router_state, unstack_layers
from moe_jax.models.routing_metrics import mixtures
from moe_jax.routing import Decision
from moe_jax.routing.router import RNG, STATE, RouterModule
from moe_jax.routing.statistics import METRICS


def trace_assignments(
    config: ModelConfig,
    params: Params,
    *texts: Int[Array, "B _"] | None,
    router_state: Params | None = None,
) -> dict[str, Decision]:
    """What the router of each mixture decides on a batch, by its name, `layer_i`; see `mixtures`.

    The evaluation capacity holds, groups are those of `config.moe.group_size`, and a router that draws draws the same
    each time.

    Args:
      config: the model's shape; scanned or recomputed layers give what plain ones do.
      params: the model's parameters.
      texts: the model's arguments: tokens, positions and segment ids, then an encoder's; see `Decoder` and
        `EncoderDecoder`.
      router_state: what its routers remember; None takes what they start with.
    """
    state = init_router_state(config) if router_state is None else router_state
    if config.scan_layers:
        params, state = unstack_layers(params, config), unstack_layers(state, config) if state else state
    plain = dataclasses.replace(config, scan_layers=False, remat=False, remat_saves=())
    run = functools.partial(
        make_model(plain).apply,
        capture_intermediates=lambda module, method: isinstance(module, RouterModule) and method == "__call__",
        mutable=["intermediates", METRICS],
        rngs={RNG: jax.random.key(0)},
    )
    _, collections = jax.jit(run)({"params": params, STATE: state}, *texts)
    traced = mixtures(collections["intermediates"], plain)
    return {name: mixture["router"]["__call__"][0] for name, mixture in traced}
