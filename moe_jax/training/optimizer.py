"""Optimizers and schedules, all of them optax's."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_jax.training.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by number of steps done: linear warm-up, then a cosine or an inverse square root, over `steps`.

    The first step already has its share of the warm-up, and the last one the final rate: no step is made at rate 0.
    """
    warmup, peak = config.warmup_steps, config.learning_rate
    if config.schedule == "cosine":
        by_step = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak * config.final_fraction)
    else:

        def inverse_sqrt(step: Any) -> Any:
            # Counted from the end of the warm-up, as join_schedules does.
            return peak * jnp.sqrt(warmup / (warmup + step))

        by_step = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), inverse_sqrt], [warmup])
    return _promoting(lambda done: by_step(done + 1))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW or Adafactor (factored second moments, no momentum: Shazeer and Stern 2018)."""
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        beta1 = 0.9 if config.beta1 is None else config.beta1
        beta2 = 0.99 if config.beta2 is None else config.beta2
        optimizer = optax.adamw(schedule, beta1, beta2, weight_decay=config.weight_decay, mask=_decays)
    else:
        # Optax adds this decay after the learning rate, unlike AdamW's: the schedule is for us to multiply with.
        optimizer = optax.adafactor(
            schedule,
            weight_decay_rate=(lambda step: config.weight_decay * schedule(step)) if config.weight_decay else None,
            weight_decay_mask=_decays,
        )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    init, update = optax.chain(clip, optimizer)
    return optax.GradientTransformationExtraArgs(_promoting(init), _promoting(update))


def _decays(params: Any) -> Any:
    """True for matrices, false for scales and biases, whether or not layers are stacked for a scan."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("scale", "bias")), params)


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets optax mix integers with floats inside, as it does, where jax is told to be strict about that."""

    @functools.wraps(function)
    def promoting(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments, **options)

    return promoting
