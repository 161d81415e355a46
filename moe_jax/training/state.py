"""All that a step of training changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int, Key

from moe_jax.models.parameters import init_params, init_router_state
from moe_jax.training.config import TrainConfig


@struct.dataclass
class TrainState:
    """The value a step takes and returns.

    Attributes:
      step: optimizer steps done.
      params: the model's parameters, float32.
      opt_state: the optimizer's.
      router_state: what routers remember that is not a parameter; {} where they remember nothing.
      rng: the key that each step's draws are folded from.
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    router_state: Any
    rng: Key[Array, ""]


def init_state(config: TrainConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, determined by `config.seed`."""
    init_rng, rng = jax.random.split(jax.random.key(config.seed))
    params = init_params(config.model, init_rng)
    return TrainState(jnp.int32(0), params, optimizer.init(params), init_router_state(config.model), rng)
