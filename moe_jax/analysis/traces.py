"""Routing traces: the decision of every router of a model on a batch. B batch, S sequence."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from jaxtyping import Array, Int

from moe_jax.layers.moe import MoEConfig
from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.models.parameters import Params, init_router_state
from moe_jax.models.paths import mixtures_of, unstack_layers
from moe_jax.routing import Decision
from moe_jax.routing.router import RNG, STATE, RouterModule
from moe_jax.routing.statistics import METRICS


def trace_assignments(
    config: ModelConfig,
    params: Params,
    *texts: Int[Array, "B _"] | None,
    router_state: Params | None = None,
) -> dict[str, Decision]:
    """Returns the decision of each mixture's router on a batch, by the mixture's name, `layer_i`; see `MixturePath`.

    Capacity is that of evaluation, and random draws are the same each time. Groups have their `group_size`; where the
    texts do not make whole groups, each is a group.

    Args:
      config: the model's configuration; scan and remat do not change the result.
      params: the model's parameters.
      texts: the model's arguments: tokens, positions and segment ids, then those of an encoder; see `Decoder` and
        `EncoderDecoder`.
      router_state: state of the routers; None takes the initial one.
    """
    state = init_router_state(config) if router_state is None else router_state
    if config.scan_layers:
        params, state = unstack_layers(params, config), unstack_layers(state, config) if state else state
    plain = _with_whole_groups(dataclasses.replace(config, scan_layers=False, remat=False, remat_saves=()), texts)
    run = functools.partial(
        make_model(plain).apply,
        capture_intermediates=lambda module, method: isinstance(module, RouterModule) and method == "__call__",
        mutable=["intermediates", METRICS],
        rngs={RNG: jax.random.key(0)},
    )
    _, collections = jax.jit(run)({"params": params, STATE: state}, *texts)
    traced = mixtures_of(collections["intermediates"], plain)
    return {path.name: mixture["router"]["__call__"][0] for path, mixture in traced}


def _with_whole_groups(config: ModelConfig, texts: Sequence[Int[Array, "B _"] | None]) -> ModelConfig:
    """Makes each sequence a group in mixtures whose groups these texts do not fill; others stay as they are."""
    sizes = {text.size for text in texts if text is not None}

    def fitting(moe: MoEConfig | None) -> MoEConfig | None:
        whole = moe is None or moe.group_size is None or all(size % moe.group_size == 0 for size in sizes)
        return moe if whole else dataclasses.replace(moe, group_size=None)

    variants = tuple(dataclasses.replace(variant, moe=fitting(variant.moe)) for variant in config.variants)
    return dataclasses.replace(config, moe=fitting(config.moe), variants=variants)
