"""One pure step of training, and one of evaluation. B batch, S sequence, V vocabulary, E experts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from moe_jax.layers.attention import DROPOUT
from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model, model_inputs
from moe_jax.models.sown import Metrics, auxiliary_loss, next_router_state, routing_metrics, routing_values
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.statistics import METRICS, SUMS, mean_where
from moe_jax.training.accumulation import batch_parts, value_and_grad_of_sums
from moe_jax.training.config import TrainConfig
from moe_jax.training.state import TrainState

Batch = Mapping[str, Array | np.ndarray]
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
    result, collections = make_model(config, training).apply(
        {"params": params, STATE: router_state},
        *model_inputs(config, batch),
        targets=targets,
        rngs={RNG: rng, DROPOUT: jax.random.fold_in(rng, 1)},
        mutable=[collection],
    )
    return result, collections.get(collection, {})


def batch_sums(config: ModelConfig, params: Any, router_state: Any, batch: Batch, rng: Array) -> Sums:
    """Statistics of a forward pass in training: the loss, and `routing`, all that routers sowed."""
    nats, routing = apply_model(config, params, router_state, batch, rng, True, SUMS, batch["targets"])
    return {"loss": mean_where(nats, batch["loss_mask"]), "routing": routing}
