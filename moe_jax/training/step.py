"""One pure step of training, and one of evaluation. B batch, S sequence, V vocabulary, E experts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.statistics import METRICS, SUMS, mean_where, values
from moe_jax.training.accumulation import batch_parts, value_and_grad_of_sums
from moe_jax.training.config import TrainConfig
from moe_jax.training.state import TrainState

Batch = Mapping[str, Array | np.ndarray]
Metrics = dict[str, Any]
# Statistics: "loss", and "routing", what the routers sowed into `routing_sums`.
Sums = dict[str, Any]


def make_train_step(
    config: TrainConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step as a pure function; metrics: `routing_metrics`, loss, total_loss, gradient_norm, learning_rate.

    `loss` is the mean cross-entropy in nats per token; `total_loss` adds the routers' losses with their coefficients.
    With `config.accumulation` parts of the batch follow one another; losses, metrics and gradients are the batch's.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)

        def sums(params: Any, part: Batch, rng: Array) -> Sums:
            return batch_sums(config.model, params, state.router_state, part, rng)

        def objective(sums: Sums) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
            routing = routing_values(sums["routing"], config.model)
            metrics = {"loss": sums["loss"].value} | routing_metrics(routing, config.model)
            return metrics["loss"] + auxiliary_loss(metrics, config.model), (metrics, routing)

        gradient_function = value_and_grad_of_sums(objective, sums, config.accumulation)
        parts = batch_parts(batch, config)
        (total, (metrics, routing)), gradients = gradient_function(state.params, parts, rng)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics |= {
            "total_loss": total,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        params = optax.apply_updates(state.params, updates)
        router_state = next_router_state(config.model, state.router_state, routing)
        return TrainState(state.step + 1, params, opt_state, router_state, state.rng), metrics

    return train_step


def make_eval_step(config: TrainConfig) -> Callable[[TrainState, Batch], Metrics]:
    """Sums over one batch, `loss_sum` in nats over `targets` tokens, and its `routing_metrics`; draws are fixed."""

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        nats, routing = apply_model(
            config.model, state.params, state.router_state, batch, jax.random.key(0), False, targets=batch["targets"]
        )
        loss_sum, targets = mean_where(nats, batch["loss_mask"]).sums
        return {"loss_sum": loss_sum, "targets": targets} | routing_metrics(routing, config.model)

    return eval_step


def apply_model(
    config: ModelConfig,
    params: Any,
    router_state: Any,
    batch: Batch,
    rng: Array,
    training: bool,
    collection: str = METRICS,
    targets: Int[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B S V"] | Float[Array, "B S"], Any]:
    """Logits, or of `targets` their nats, and what the routers sowed into `collection`."""
    result, collections = Decoder(config, training).apply(
        {"params": params, STATE: router_state},
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        targets,
        rngs={RNG: rng},
        mutable=[collection],
    )
    return result, collections.get(collection, {})


def batch_sums(config: ModelConfig, params: Any, router_state: Any, batch: Batch, rng: Array) -> Sums:
    """Statistics of a forward pass in training: the loss, and `routing`, all that routers sowed."""
    nats, routing = apply_model(config, params, router_state, batch, rng, True, SUMS, batch["targets"])
    return {"loss": mean_where(nats, batch["loss_mask"]), "routing": routing}


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
    router = config.moe.checked_router()
    update = jax.vmap(router.next_state) if config.scan_layers else router.next_state

    def of_layer(state: Any, sown: Any) -> Any:
        # What is beside the router's, the placement of experts, does not move in a step.
        mixture = dict(state["moe"])
        if "router" in mixture:
            mixture["router"] = update(mixture["router"], sown["moe"]["router"])
        return {"moe": mixture}

    if not config.scan_layers:
        return {layer: of_layer(state, routing[layer]) for layer, state in router_state.items()}
    blocks = router_state["layers"]
    return {"layers": {block: of_layer(state, routing["layers"][block]) for block, state in blocks.items()}}


def routing_values(sums: Any, config: ModelConfig) -> Any:
    """The collection `routing`, from `routing_sums`."""
    return {name: values(tree, config.scan_layers and name == "layers") for name, tree in sums.items()}


def routing_metrics(routing: Any, config: ModelConfig) -> Metrics:
    """From what the routers sowed: scalars as means over layers, and vectors over experts as {"layer_i": Float[E]}."""
    metrics = {}
    for by_layer in (routing_by_layer(routing, config), depth_by_layer(routing, config)):
        for name, value in next(iter(by_layer.values()), {}).items():
            values = {layer: sown[name] for layer, sown in by_layer.items()}
            metrics[name] = values if value.ndim else jnp.mean(jnp.stack(list(values.values())))
    return metrics


def routing_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """What each sparse layer sowed, its router and how its experts ran, as `layer_i`, whether or not it was scanned."""
    by_layer = {}
    for i in config.moe_layers:
        mixture = dict(sown_in_layer(routing, config, i)["moe"])
        by_layer[f"layer_{i}"] = dict(mixture.pop("router")) | mixture
    return by_layer


def depth_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """The same of the layers that only some tokens run."""
    return {f"layer_{i}": sown_in_layer(routing, config, i) for i in config.depth_layers}


def sown_in_layer(routing: Any, config: ModelConfig, layer: int) -> Any:
    """What one layer sowed."""
    if not config.scan_layers:
        return routing[f"layer_{layer}"]
    repeat, block = divmod(layer, config.period)
    return jax.tree.map(lambda x: x[repeat], routing["layers"][f"block_{block}"])
