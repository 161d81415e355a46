"""Rebalancing: experts move between devices during a run, with their parameters and moments. E experts, R repeats."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from moe_jax.experts.parallel.balance import balanced_placement
from moe_jax.models.config import ModelConfig
from moe_jax.models.parameters import Params
from moe_jax.models.paths import DECODER, ENCODER, MIXTURES, MixturePath, layers_at
from moe_jax.training.config import TrainConfig
from moe_jax.training.mesh import state_shardings
from moe_jax.training.state import TrainState


def rebalance(
    state: TrainState,
    load_by_layer: Mapping[str, Float[Array | np.ndarray, " E"]],
    config: TrainConfig,
    mesh: Mesh,
) -> TrainState:
    """Places the experts of each sparse layer by `balanced_placement`; the model's results do not change.

    Args:
      state: the training state; donated, unless no expert moves.
      load_by_layer: the metric `load` of a step, [E] by the name of each mixture.
      config: the run, with `model.moe.parallel.rebalance_every`.
      mesh: the mesh of the state.

    Returns:
      The state with the new placement.
    """
    model = config.model
    now = {path: np.asarray(jax.device_get(x)) for path, x in _placements(state.router_state).items()}
    new = {}
    for path, placement in now.items():
        names = [mixture.name for mixture in mixtures_at(path, model)]
        loads = [np.asarray(jax.device_get(load_by_layer[name]), np.float64) for name in names]
        rows = placement.reshape(len(names), -1)
        placed = [balanced_placement(load, mesh.shape["expert"], row) for load, row in zip(loads, rows, strict=True)]
        new[path] = np.stack(placed).reshape(placement.shape)
    if all(np.array_equal(new[path], now[path]) for path in now):
        return state
    # For each new place, the old place of its expert.
    source = {path: np.take_along_axis(now[path], np.argsort(new[path], axis=-1), axis=-1) for path in now}
    leaves, tree = jax.tree.flatten(state_shardings(state, model, mesh))
    return _mover(tuple(leaves), tree)(state, new, source)


def at_own_index(params: Params, router_state: Any) -> tuple[Params, Any]:
    """Returns parameters with each expert at its own index, and the router state without a placement."""
    placements = _placements(router_state)

    def moved(path: tuple[Any, ...], leaf: Array) -> Array:
        names = _names(path)
        rows = placements.get(_mixture(names)) if names[-1].startswith("experts_") else None
        return leaf if rows is None else _take(leaf, rows)

    def without(tree: Any) -> Any:
        return (
            {name: without(part) for name, part in tree.items() if name != "placement"}
            if isinstance(tree, dict)
            else tree
        )

    return jax.tree_util.tree_map_with_path(moved, params), without(router_state)


def mixtures_at(names: tuple[str, ...], config: ModelConfig) -> list[MixturePath]:
    """Returns the mixtures whose values lie at a path that ends in a mixture, one for each repeat of scanned layers."""
    return [MixturePath(layer, names[-1]) for layer in layers_at(names, config)]


@functools.cache
def _mover(shardings: tuple[Any, ...], tree: Any) -> Any:
    """Compiles the move of experts for states with these shardings."""

    def move(state: TrainState, placement: Any, source: Any) -> TrainState:
        def moved(path: tuple[Any, ...], leaf: Array) -> Array:
            names = _names(path)
            if names[-1:] == ("placement",):
                return placement[_mixture(names)]
            if names and names[-1].startswith("experts_"):
                return _take(leaf, source[_mixture(names)])
            return leaf

        return jax.tree_util.tree_map_with_path(moved, state)

    return jax.jit(move, donate_argnums=0, out_shardings=jax.tree.unflatten(tree, shardings))


def _take(x: Array, source: Int[Array, "*R E"]) -> Array:
    take = functools.partial(jnp.take, axis=0)
    return take(x, source) if source.ndim == 1 else jax.vmap(take)(x, source)


def _placements(router_state: Any) -> dict[tuple[str, ...], Array]:
    leaves = jax.tree_util.tree_leaves_with_path(router_state)
    return {_mixture(_names(path)): x for path, x in leaves if _names(path)[-1] == "placement"}


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _mixture(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the path of the mixture that an array belongs to, without the optimizer's own prefix of moments."""
    place = next(i for i, name in enumerate(names) if name in MIXTURES)
    first = next(
        i for i, name in enumerate(names) if name in (ENCODER, DECODER) or name.startswith(("segment_", "layer_"))
    )
    return names[first : place + 1]
