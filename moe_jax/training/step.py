"""One pure step of training, and one of evaluation. B batch, S sequence, V vocabulary, E experts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.routing.router import METRICS, RNG, STATE
from moe_jax.training.config import TrainConfig
from moe_jax.training.state import TrainState

Batch = Mapping[str, Array | np.ndarray]
Metrics = dict[str, Any]


def make_train_step(
    config: TrainConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step as a pure function; metrics: `routing_metrics`, loss, total_loss, gradient_norm, learning_rate.

    `loss` is the mean cross-entropy in nats per token; `total_loss` adds the routers' losses with their coefficients.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)

        def loss_function(params: Any) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
            logits, routing = apply_model(config.model, params, state.router_state, batch, rng, True)
            loss = mean_loss(logits, batch["targets"], batch["loss_mask"])
            metrics = {"loss": loss} | routing_metrics(routing, config.model)
            return loss + auxiliary_loss(metrics, config.model), (metrics, routing)

        gradient_function = jax.value_and_grad(loss_function, has_aux=True)
        (total, (metrics, routing)), gradients = gradient_function(state.params)
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
        logits, routing = apply_model(config.model, state.params, state.router_state, batch, jax.random.key(0), False)
        targets = jnp.sum(batch["loss_mask"], dtype=jnp.float32)
        loss = mean_loss(logits, batch["targets"], batch["loss_mask"])
        return {"loss_sum": loss * targets, "targets": targets} | routing_metrics(routing, config.model)

    return eval_step


def apply_model(
    config: ModelConfig, params: Any, router_state: Any, batch: Batch, rng: Array, training: bool
) -> tuple[Float[Array, "B S V"], Any]:
    """Logits, and the collection that the routers sowed."""
    logits, collections = Decoder(config, training).apply(
        {"params": params, STATE: router_state},
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        rngs={RNG: rng},
        mutable=[METRICS],
    )
    return logits, collections.get(METRICS, {})


def mean_loss(logits: Float[Array, "B S V"], targets: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, ""]:
    """Cross-entropy in nats per target token; 0 if there is none."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)


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
    if not config.scan_layers:
        return {
            layer: {"moe": {"router": router.next_state(state["moe"]["router"], routing[layer]["moe"]["router"])}}
            for layer, state in router_state.items()
        }
    update = jax.vmap(router.next_state)
    blocks = router_state["layers"]
    return {
        "layers": {
            block: {
                "moe": {"router": update(state["moe"]["router"], routing["layers"][block]["moe"]["router"])},
            }
            for block, state in blocks.items()
        }
    }


def routing_metrics(routing: Any, config: ModelConfig) -> Metrics:
    """From what the routers sowed: scalars as means over layers, and vectors over experts as {"layer_i": Float[E]}."""
    metrics = {}
    for by_layer in (routing_by_layer(routing, config), depth_by_layer(routing, config)):
        for name, value in next(iter(by_layer.values()), {}).items():
            values = {layer: sown[name] for layer, sown in by_layer.items()}
            metrics[name] = values if value.ndim else jnp.mean(jnp.stack(list(values.values())))
    return metrics


def routing_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """Each sparse layer's router metrics under the name `layer_i`, whether or not layers were scanned."""
    return {f"layer_{i}": sown_in_layer(routing, config, i)["moe"]["router"] for i in config.moe_layers}


def depth_by_layer(routing: Any, config: ModelConfig) -> dict[str, Metrics]:
    """The same of the layers that only some tokens run."""
    return {f"layer_{i}": sown_in_layer(routing, config, i) for i in config.depth_layers}


def sown_in_layer(routing: Any, config: ModelConfig, layer: int) -> Any:
    """What one layer sowed."""
    if not config.scan_layers:
        return routing[f"layer_{layer}"]
    repeat, block = divmod(layer, config.period)
    return jax.tree.map(lambda x: x[repeat], routing["layers"][f"block_{block}"])
