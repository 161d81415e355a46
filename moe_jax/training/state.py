"""All that a step of training changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from moe_jax.models.parameters import init_params
from moe_jax.training.config import TrainConfig


@struct.dataclass
class TrainState:
    """The fields' types are not annotated: jax puts descriptions of arrays, placements and more in their place.

    Attributes:
      step: optimizer steps done, an int32 scalar.
      params: the model's parameters, float32.
      opt_state: the optimizer's.
      router_state: what routers remember that is not a parameter; {} where they remember nothing.
      rng: the key that each step's draws are folded from.
    """

    step: Any
    params: Any
    opt_state: Any
    router_state: Any
    rng: Any


def init_state(config: TrainConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, determined by `config.seed`."""
    init_rng, rng = jax.random.split(jax.random.key(config.seed))
    params = init_params(config.model, init_rng)
    return TrainState(jnp.int32(0), params, optimizer.init(params), {}, rng)
