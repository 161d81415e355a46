"""The training state: everything that a step changes."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, Key

from moe_jax.models.parameters import init_params, init_router_state
from moe_jax.training.config import TrainConfig
from moe_jax.training.mesh import state_shardings

OPTIMIZATION_LEVEL = "xla_backend_optimization_level"


@struct.dataclass
class TrainState:
    """The value that a training step takes and returns.

    Attributes:
      step: optimizer steps done.
      params: the model's parameters, float32.
      opt_state: the optimizer's state.
      router_state: state of the routers, such as selection biases, and the placement of experts if it may change; {} if
        there is none.
      rng: the key from which each step's key is derived.
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    router_state: Any
    rng: Key[Array, ""]


def place_state(config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Makes the initial state on a mesh; each device draws only its own part."""
    shardings = state_shardings(abstract_state(config, optimizer), config.model, mesh)
    # The program runs once, so compiling fast matters more than running fast; XLA_FLAGS may ask for a level.
    options = {} if OPTIMIZATION_LEVEL in os.environ.get("XLA_FLAGS", "") else {OPTIMIZATION_LEVEL: 1}
    return jax.jit(lambda: init_state(config, optimizer), out_shardings=shardings, compiler_options=options)()


def abstract_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainState:
    """Returns the shapes and types of a state, and its shardings if there is a `mesh`."""
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    if mesh is None:
        return state

    def placed(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, state, state_shardings(state, config.model, mesh))


def init_state(config: TrainConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Makes the state before the first step, which `config.seed` determines."""
    init_rng, rng = jax.random.split(jax.random.key(config.seed))
    params = init_params(config.model, init_rng)
    return TrainState(jnp.int32(0), params, optimizer.init(params), init_router_state(config.model), rng)
