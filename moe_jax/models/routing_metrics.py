"""Routing metrics: numbers that the routers of a model sow, as metrics by layer, as losses and as their next state."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.models.config import ModelConfig
from moe_jax.models.paths import MIXTURES, layer_of, layer_paths, layers_at, map_stacks, mixtures_of
from moe_jax.routing.statistics import values

Metrics = dict[str, Any]


def routing_values(statistics: Any, config: ModelConfig) -> Any:
    """Computes the metrics of the statistics that a model's routers sowed into the collection `routing`."""

    def of_stack(tree: Any) -> Any:
        return {name: values(part, stacked=name.startswith("segment_")) for name, part in tree.items()}

    return map_stacks(of_stack, statistics, config)


def routing_metrics(routing: Any, config: ModelConfig) -> Metrics:
    """Collects what routers sowed: scalars as means over layers, vectors over experts as {"layer_i": Float[E]}."""
    by_name: dict[str, Metrics] = {}
    for by_layer in (routing_by_layer(routing, config), depth_by_layer(routing, config)):
        for layer, metrics in by_layer.items():
            for name, value in metrics.items():
                by_name.setdefault(name, {})[layer] = value

    def combined(values: Metrics) -> Any:
        return jnp.mean(jnp.stack(list(values.values()))) if next(iter(values.values())).ndim == 0 else values

    return {name: combined(values) for name, values in by_name.items()}


def routing_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """Returns what each mixture sowed, its router and how its experts ran, by the name of its `MixturePath`."""
    return {path.name: _merged(mixture) for path, mixture in mixtures_of(routing, config)}


def _merged(mixture: Metrics) -> Metrics:
    return dict(mixture["router"]) | {name: value for name, value in mixture.items() if name != "router"}


def depth_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """Returns what each layer that only some tokens run sowed, by its name."""
    layers = [path for path in layer_paths(config) if config.layer(path.index).depth]
    return {path.name: layer_of(routing, path, config) for path in layers}


def auxiliary_loss(routing: Any, config: ModelConfig) -> Float[Array, ""]:
    """Sums the routers' losses, each a mean over the layers that have it of the loss times its coefficient there."""
    # By name and coefficient, which need not be the same in all layers.
    losses: dict[str, dict[float, list[Array]]] = {}

    def add(sown: Metrics, coefficients: dict[str, float]) -> None:
        for name, coefficient in coefficients.items():
            losses.setdefault(name, {}).setdefault(coefficient, []).append(sown[name])

    for path, mixture in mixtures_of(routing, config):
        add(mixture["router"], config.layer(path.layer.index).mixtures[path.part].coefficients)
    for path in layer_paths(config):
        if depth := config.layer(path.index).depth:
            add(layer_of(routing, path, config), {"depth_loss": depth.coefficient})
    total = jnp.float32(0.0)
    for by_coefficient in losses.values():
        layers = sum(map(len, by_coefficient.values()))
        for coefficient, found in by_coefficient.items():
            if coefficient:
                total += coefficient * len(found) / layers * jnp.mean(jnp.stack(found))
    return total


def next_router_state(config: ModelConfig, router_state: Any, routing: Any) -> Any:
    """Returns the routers' state after a step in which they sowed `routing`."""

    def below(state: Any, sown: Any, names: tuple[str, ...]) -> Any:
        # The placement of experts beside a router does not move in a step.
        return {
            name: _next_state(part, sown[name], names, config)
            if name == "router"
            else below(part, sown[name], (*names, name))
            if isinstance(part, dict)
            else part
            for name, part in state.items()
        }

    return below(router_state, routing, ())


def _next_state(state: Any, sown: Any, names: tuple[str, ...], config: ModelConfig) -> Any:
    """Returns the next state of the router in the mixture at the path `names`; of one for each repeat, if scanned."""
    index = layers_at(names, config)[0].index
    part = next(name for name in names if name in MIXTURES)
    moe = config.layer(index).mixtures[part]

    def update(state: Any, sown: Any) -> Any:
        return moe.router.next_state(state, sown, moe.setting())

    return jax.vmap(update)(state, sown) if config.scan_layers else update(state, sown)
