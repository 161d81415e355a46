"""What the routers of a model sow in a step: by layer, as metrics, as losses, and as their state after it."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.models.config import ModelConfig
from moe_jax.models.parameters import STACKS, map_stacks
from moe_jax.routing.statistics import values

Metrics = dict[str, Any]

# What a mixture is called within its layer, and what stands before the layer's name in metrics.
MIXTURES = {"moe": "", "query_moe": "query_", "key_value_moe": "key_value_"}


def routing_values(sums: Any, config: ModelConfig) -> Any:
    """The collection `routing`, from `routing_sums`."""

    def of_stack(sums: Any) -> Any:
        return {name: values(tree, config.scan_layers and name == "layers") for name, tree in sums.items()}

    return map_stacks(of_stack, sums, config)


def routing_metrics(routing: Any, config: ModelConfig) -> Metrics:
    """From what the routers sowed: scalars as means over layers, and vectors over experts as {"layer_i": Float[E]}."""
    metrics = {}
    for by_layer in (routing_by_layer(routing, config), depth_by_layer(routing, config)):
        for name, value in next(iter(by_layer.values()), {}).items():
            values = {layer: sown[name] for layer, sown in by_layer.items()}
            metrics[name] = values if value.ndim else jnp.mean(jnp.stack(list(values.values())))
    return metrics


def routing_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """What each mixture sowed, its router and how its experts ran; see `mixtures`."""
    return {name: dict(mixture["router"]) | _without_router(mixture) for name, mixture in mixtures(routing, config)}


def mixtures(tree: Any, config: ModelConfig) -> Iterator[tuple[str, Any]]:
    """What a collection holds of each mixture, whether or not layers are scanned, by name.

    The names are `layer_i`; in the attention `query_layer_i` and `key_value_layer_i`; before that, where there are two
    stacks, `encoder_` or `decoder_`.
    """
    for stack, part in _stacks(tree, config):
        for i in config.moe_layers:
            layer = sown_in_layer(part, config, i)
            for name, prefix in MIXTURES.items():
                if name in layer:
                    yield f"{stack}{prefix}layer_{i}", layer[name]


def mixture_names(path: Sequence[str], config: ModelConfig) -> list[str]:
    """The names in `mixtures` of what is at a path of parameters or state that ends in a mixture.

    One for each repeat where layers are scanned, in the order of the arrays' first axis.
    """
    stack, prefix = f"{path[0]}_" if path[0] in STACKS else "", MIXTURES[path[-1]]
    kind, _, index = path[-2].partition("_")
    layers = [int(index)] if kind == "layer" else range(int(index), config.num_layers, config.period)
    return [f"{stack}{prefix}layer_{i}" for i in layers]


def _without_router(mixture: Any) -> Metrics:
    return {name: value for name, value in mixture.items() if name != "router"}


def depth_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """The same of the layers that only some tokens run."""
    return {f"layer_{i}": sown_in_layer(routing, config, i) for i in config.depth_layers}


def sown_in_layer(routing: Any, config: ModelConfig, layer: int) -> Any:
    """What one layer of a stack sowed."""
    if not config.scan_layers:
        return routing[f"layer_{layer}"]
    repeat, block = divmod(layer, config.period)
    return jax.tree.map(lambda x: x[repeat], routing["layers"][f"block_{block}"])


def auxiliary_loss(metrics: Metrics, config: ModelConfig) -> Float[Array, ""]:
    """The routers' losses, each a mean over layers, times their coefficients."""
    coefficients = config.moe.coefficients if config.moe_layers else {}
    if config.depth_layers:
        coefficients |= {"depth_loss": config.depth.coefficient}
    return sum((c * metrics[name] for name, c in coefficients.items() if c), jnp.float32(0.0))


def next_router_state(config: ModelConfig, router_state: Any, routing: Any) -> Any:
    """The routers' state after a step in which they sowed `routing`, whether or not layers are scanned."""
    if not router_state:
        return router_state
    router, setting = config.moe.router, config.moe.setting()

    def next_state(state: Any, sown: Any) -> Any:
        return router.next_state(state, sown, setting)

    update = jax.vmap(next_state) if config.scan_layers else next_state

    def below(state: Any, sown: Any) -> Any:
        # What is beside the router's, the placement of experts, does not move in a step.
        return {
            name: update(part, sown[name])
            if name == "router"
            else below(part, sown[name])
            if isinstance(part, dict)
            else part
            for name, part in state.items()
        }

    return below(router_state, routing)


def _stacks(tree: Any, config: ModelConfig) -> Iterator[tuple[str, Any]]:
    """What each stack sowed, and what its layers' names begin with."""
    if config.architecture == "decoder":
        yield "", tree
    else:
        yield from ((f"{name}_", tree.get(name, {})) for name in STACKS)
