"""Parameters and router state from another run: initial ones, or those of a teacher."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from moe_jax.configuration import require
from moe_jax.models.config import ModelConfig
from moe_jax.models.parameters import Params, init_params
from moe_jax.models.paths import MIXTURES, layers_at, stack_layers, unstack_layers
from moe_jax.training.config import TrainConfig
from moe_jax.training.rebalance import at_own_index
from moe_jax.training.state import TrainState
from moe_jax.training.trained import load_run


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model whose probabilities another model learns.

    Attributes:
      config: configuration of the teacher's model.
      variables: its parameters and its router state.
    """

    config: ModelConfig
    variables: tuple[Params, Params]


def load_teacher(config: TrainConfig, workdir: Path, mesh: Mesh) -> Teacher | None:
    """Loads the teacher that `config.distillation` names onto a mesh; None without distillation.

    Args:
      config: the student's run.
      workdir: directory of the student's run; a relative name of the teacher's is resolved beside it.
      mesh: the mesh of the student's run.

    Raises:
      ConfigError: no such run, or it has another vocabulary or architecture.
    """
    if config.distillation is None:
        return None
    trained = load_run(resolve(config.distillation.run, workdir), mesh)
    for name in ("vocab_size", "architecture", "causal"):
        theirs, ours = getattr(trained.config.model, name), getattr(config.model, name)
        require(theirs == ours, "distillation.run", config.distillation.run, f"a run with model.{name}={ours!r}")
    return Teacher(trained.config.model, (trained.state.params, trained.state.router_state))


@dataclasses.dataclass(frozen=True)
class Start:
    """Arrays that a run takes from another, by their paths in a model whose layers are not scanned.

    Attributes:
      params: parameters.
      router_state: what its routers remember, such as selection biases; each expert is at its own index.
    """

    params: Mapping[str, Array]
    router_state: Mapping[str, Array]


def load_start(config: TrainConfig, workdir: Path, mesh: Mesh) -> Start | None:
    """Loads what `config.start` takes from another run; None without `start`.

    With `start.parts` `all`, that is all parameters, and what routers remember where both runs have one kind of router.

    Args:
      config: the run to start.
      workdir: directory of the run to start; a relative name of the other run is resolved beside it.
      mesh: the mesh of the run to start.

    Raises:
      ConfigError: no such run, or `start.parts` is `all` and it lacks a parameter.
    """
    start = config.start
    if start is None:
        return None
    trained = load_run(resolve(start.run, workdir), mesh)
    state = at_own_index(trained.state.params, trained.state.router_state)
    known, remembered = (_by_place(_unrolled(tree, trained.config.model)) for tree in state)
    ours = _by_place(jax.eval_shape(lambda: init_params(_plain(config.model), jax.random.key(0))))
    if start.parts == "outside_mixtures":
        ours = {place: x for place, x in ours.items() if not any(f"['{name}']" in place for name in MIXTURES)}
    fits = {place: place in known and known[place].shape == x.shape for place, x in ours.items()}
    if start.parts == "all":
        for place, x in ours.items():
            require(fits[place], "start.run", start.run, f"a run with a parameter {place} of shape {x.shape}")
    alike = {place: x for place, x in remembered.items() if _routes_alike(place, trained.config.model, config.model)}
    return Start({place: known[place] for place in ours if fits[place]}, alike if start.parts == "all" else {})


def _routes_alike(place: str, theirs: ModelConfig, ours: ModelConfig) -> bool:
    """Says whether both models have one kind of router at the place of a router's state."""
    names = tuple(re.findall(r"\['([^']*)'\]", place))
    part = next(name for name in names if name in MIXTURES)
    (layer,) = layers_at(names, _plain(theirs))
    mixtures = [config.layer(layer.index).mixtures for config in (theirs, ours) if layer.index < config.num_layers]
    routers = [type(found[part].router) for found in mixtures if part in found]
    return len(routers) == 2 and routers[0] is routers[1]


def start_from(start: Start, state: TrainState, config: ModelConfig) -> TrainState:
    """Replaces what `start` has in a first state; all shardings stay."""

    def replaced(tree: Params, given: Mapping[str, Array]) -> Params:
        def taken(path: tuple[Any, ...], x: Array) -> Array:
            found = given.get(jax.tree_util.keystr(path), x)
            return found if found.shape == x.shape else x

        result = jax.tree_util.tree_map_with_path(taken, _unrolled(tree, config))
        result = stack_layers(result, config) if config.scan_layers else result
        return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), result, tree)

    return state.replace(
        params=replaced(state.params, start.params), router_state=replaced(state.router_state, start.router_state)
    )


def resolve(run: str, workdir: Path) -> Path:
    """Returns the directory of another run: `run` itself if it is absolute, else beside `workdir`."""
    return workdir.parent / Path(run).expanduser()


def _unrolled(params: Params, config: ModelConfig) -> Params:
    return unstack_layers(params, config) if config.scan_layers else params


def _plain(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, scan_layers=False)


def _by_place(params: Params) -> Params:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
