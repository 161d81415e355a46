"""Optimizers and learning-rate schedules of optax."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_jax.training.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the steps done: linear warm-up, the schedule, linear decay to zero.

    The first step has rate peak / warmup_steps. The decay would reach 0 at the step after the last.
    """
    warmup, peak, decaying = config.warmup_steps, config.learning_rate, round(config.decay_share * steps)
    if config.schedule == "cosine":
        by_step = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak * config.final_fraction)
    elif config.schedule == "constant":
        by_step = optax.warmup_constant_schedule(0.0, peak, warmup)
    else:

        def inverse_sqrt(step: Any) -> Any:
            # Counted from the end of the warm-up, as join_schedules does.
            return peak * jnp.sqrt(warmup / (warmup + step))

        by_step = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), inverse_sqrt], [warmup])
    # Of the step that is to be done, and of those that are then left.
    line = optax.linear_schedule(1.0, 0.0, decaying + 1, steps - decaying) if decaying else lambda step: 1.0
    return _promoting(lambda done: by_step(done + 1) * line(done + 1))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Chains gradient clipping and AdamW or Adafactor (factored second moments, no momentum: Shazeer, Stern 2018)."""
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        beta1 = 0.9 if config.beta1 is None else config.beta1
        beta2 = 0.99 if config.beta2 is None else config.beta2
        optimizer = optax.adamw(schedule, beta1, beta2, weight_decay=config.weight_decay, mask=_decays)
    else:
        # Unlike AdamW's, this decay is added after the learning rate, so it has to be multiplied with the schedule.
        optimizer = optax.adafactor(
            schedule,
            weight_decay_rate=(lambda step: config.weight_decay * schedule(step)) if config.weight_decay else None,
            weight_decay_mask=_decays,
        )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    init, update = optax.chain(clip, optimizer)
    return optax.GradientTransformationExtraArgs(_promoting(init), _promoting(update))


def _decays(params: Any) -> Any:
    """Marks each parameter: true for matrices, false for scales and biases, stacked for a scan or not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("scale", "bias")), params)


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of optax, which mixes integers and floats, to run under strict dtype promotion."""

    @functools.wraps(function)
    def promoting(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments, **options)

    return promoting
