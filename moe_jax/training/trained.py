"""A trained run, read from its directory."""

import dataclasses
import json
import os
from pathlib import Path

from jax.sharding import Mesh

from moe_jax.checkpoints.manager import complete_steps, read_newest
from moe_jax.configuration import ConfigError
from moe_jax.training.config import MeshConfig, TrainConfig
from moe_jax.training.mesh import make_mesh
from moe_jax.training.optimizer import make_optimizer
from moe_jax.training.state import TrainState, abstract_state


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run at its newest checkpoint.

    Attributes:
      config: configuration of the run.
      state: state of the checkpoint; `state.step` is its step, `state.params` are the model's parameters.
      corpus_digest: digest of the text, as tokens, that the model was trained on.
    """

    config: TrainConfig
    state: TrainState
    corpus_digest: str

    def require_corpus(self, name: str, digest: str) -> None:
        """Raises ConfigError unless `digest` is that of the corpus that the model was trained on."""
        if digest != self.corpus_digest:
            raise ConfigError(
                f"data.corpus is {name!r} with digest {digest[:12]}; accepted: the corpus that the model was trained "
                f"on, with digest {self.corpus_digest[:12]}"
            )


def is_finished(config: TrainConfig, workdir: Path) -> bool:
    """Returns true if `workdir` has the last checkpoint of `train(config, workdir)`; loads and writes nothing."""
    return config.steps in complete_steps(workdir / "checkpoints")


def load_run(workdir: Path | str, mesh: Mesh | None = None) -> TrainedRun:
    """Reads a run, finished or not, from its work directory; writes nothing.

    Args:
      workdir: the work directory.
      mesh: gets the run's state, whatever mesh that was trained on; one device if None. All processes of a mesh read.

    Raises:
      ConfigError: `workdir` holds no run, or a run without a checkpoint yet.
    """
    workdir = Path(workdir).expanduser()
    identity = workdir / "run.json"
    accepted = "accepted: the work directory of a run with a checkpoint"
    if not os.path.isfile(identity):  # `Path` would raise an error for a name that is too long.
        raise ConfigError(f"workdir is {str(workdir)!r}, which has no run.json; {accepted}")
    written = json.loads(identity.read_text())
    config = TrainConfig.from_dict(written["config"])
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"workdir is {str(workdir)!r}, which has no checkpoints; {accepted}")
    optimizer = make_optimizer(config.optimizer, config.steps)
    like = abstract_state(config, optimizer, make_mesh(MeshConfig()) if mesh is None else mesh)
    state = read_newest(workdir / "checkpoints", like)
    if state is None:
        raise ConfigError(f"workdir is {str(workdir)!r}, which has no checkpoint yet; {accepted}")
    return TrainedRun(config, state, written["corpus"]["digest"])
