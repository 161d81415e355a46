"""One pure step of training, and one of evaluation. B batch, S sequence, V vocabulary, E experts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.layers.dropout import DROPOUT
from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model, model_inputs
from moe_jax.models.routing_metrics import Metrics, auxiliary_loss, next_router_state, routing_metrics, routing_values
from moe_jax.routing.router import RNG, STATE
from moe_jax.routing.statistics import METRICS, mean_where
from moe_jax.training.accumulation import batch_parts, value_and_grad_of_sums
from moe_jax.training.config import TrainConfig
from moe_jax.training.state import TrainState

Batch = Mapping[str, Array | np.ndarray]
SCORES = ("exact_match", "token_accuracy")
# Statistics: "loss", with a teacher "distillation_loss", and "routing", the collection of all routers.
Sums = dict[str, Any]


def make_train_step(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    teacher: ModelConfig | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Makes the training step, a pure function of a state, a batch, and the variables of a teacher if there is one.

    The metrics are `routing_metrics`, loss, total_loss, gradient_norm and learning_rate. `loss` is the mean
    cross-entropy in nats per token. `total_loss` adds the routers' losses times their coefficients. With a teacher,
    `distillation_loss` is the cross-entropy to its probabilities, and `total_loss` mixes it with `loss` by
    `distillation.share`. With `config.accumulation`, losses, metrics and gradients are still those of the whole batch.
    """
    share = config.distillation.share if teacher else 0.0

    def train_step(state: TrainState, batch: Batch, *taught: Any) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)

        def sums(params: Any, part: Batch, rng: Array) -> Sums:
            if teacher is None:
                return batch_sums(config.model, params, state.router_state, part, rng)
            logits, _ = apply_model(teacher, *taught, part, jax.random.key(0), False)
            return distilled_sums(config.model, params, state.router_state, part, rng, jax.nn.softmax(logits))

        def objective(sums: Sums) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
            routing = routing_values(sums["routing"], config.model)
            losses = {name: statistic.value for name, statistic in sums.items() if name != "routing"}
            metrics = losses | routing_metrics(routing, config.model)
            total = (1.0 - share) * losses["loss"] + share * losses.get("distillation_loss", 0.0)
            return total + auxiliary_loss(routing, config.model), (metrics, routing)

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
    """Makes the evaluation step, whose random draws are fixed.

    Its metrics are `loss_sum` in nats, the number of `targets` it sums over, and `routing_metrics`. A task that
    `scores_answers` adds SCORES: the share of answers that greedy decoding would give, every token being the model's
    most probable one, and the share of such tokens.
    """
    answers = config.data.task.scores_answers

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        targets, mask = batch["targets"], batch["loss_mask"]
        variables = state.params, state.router_state
        scored = None if answers else targets
        result, routing = apply_model(config.model, *variables, batch, jax.random.key(0), False, targets=scored)
        nats = optax.softmax_cross_entropy_with_integer_labels(result, targets) if answers else result
        loss_sum, count = mean_where(nats, mask).sums
        found = routing_metrics(routing_values(routing, config.model), config.model)
        metrics = {"loss_sum": loss_sum, "targets": count} | found
        return metrics | (answer_scores(result, targets, mask) if answers else {})

    return eval_step


def answer_scores(
    logits: Float[Array, "B S V"], targets: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> dict[str, Float[Array, ""]]:
    """Computes the SCORES of a batch."""
    right = jnp.argmax(logits, axis=-1) == targets
    return {
        "exact_match": jnp.mean(jnp.all(right | ~mask, axis=1).astype(jnp.float32)),
        "token_accuracy": mean_where(right.astype(jnp.float32), mask).value,
    }


def apply_model(
    config: ModelConfig,
    params: Any,
    router_state: Any,
    batch: Batch,
    rng: Array,
    training: bool,
    targets: Int[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B S V"] | Float[Array, "B S"], Any]:
    """Runs the model; returns logits, or the nats of `targets` if given, and the statistics of its routers."""
    scoring = {} if targets is None else {"targets": targets, "method": "nats"}
    result, collections = make_model(config, training).apply(
        {"params": params, STATE: router_state},
        *model_inputs(config, batch),
        rngs={RNG: rng, DROPOUT: jax.random.fold_in(rng, 1)},
        mutable=[METRICS],
        **scoring,
    )
    return result, collections.get(METRICS, {})


def distilled_sums(
    config: ModelConfig, params: Any, router_state: Any, batch: Batch, rng: Array, soft: Float[Array, "B S V"]
) -> Sums:
    """Computes `batch_sums` and the cross-entropy to the teacher's probabilities `soft`."""
    logits, routing = apply_model(config, params, router_state, batch, rng, True)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return {
        "loss": mean_where(hard, batch["loss_mask"]),
        "distillation_loss": mean_where(optax.softmax_cross_entropy(logits, soft), batch["loss_mask"]),
        "routing": routing,
    }


def batch_sums(config: ModelConfig, params: Any, router_state: Any, batch: Batch, rng: Array) -> Sums:
    """Computes the statistics of a forward pass in training: `loss`, and `routing`, the routers' statistics."""
    nats, routing = apply_model(config, params, router_state, batch, rng, True, batch["targets"])
    return {"loss": mean_where(nats, batch["loss_mask"]), "routing": routing}
