"""A trained run, read back from its directory."""

import dataclasses
import json
from pathlib import Path

from moe_jax.checkpoints.manager import Checkpoints, complete_steps
from moe_jax.configuration import ConfigError
from moe_jax.training.config import MeshConfig, TrainConfig
from moe_jax.training.mesh import make_mesh
from moe_jax.training.optimizer import make_optimizer
from moe_jax.training.state import TrainState, abstract_state


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run at its newest checkpoint.

    Attributes:
      config: as it was trained.
      state: of that checkpoint; `state.step` says which, `state.params` are the model's parameters.
      corpus_digest: of what it was trained on, and its tokenizer.
    """

    config: TrainConfig
    state: TrainState
    corpus_digest: str

    def require_corpus(self, name: str, digest: str) -> None:
        """Refuses a corpus that the model and its tokenizer were not trained on.

        Raises:
          ConfigError: the corpus has another digest.
        """
        if digest != self.corpus_digest:
            raise ConfigError(
                f"data.corpus is {name!r} with digest {digest[:12]}; accepted: what the model and its tokenizer were "
                f"trained on, digest {self.corpus_digest[:12]}"
            )


def is_finished(config: TrainConfig, workdir: Path) -> bool:
    """Whether `workdir` has the checkpoint with which `train(config, workdir)` ends; nothing is loaded or written."""
    return config.steps in complete_steps(workdir / "checkpoints")


def load_run(workdir: Path) -> TrainedRun:
    """Reads what `train(config, workdir)` left, finished or not, on one device; nothing is computed or written.

    Raises:
      ConfigError: `workdir` holds no run, or one without a checkpoint yet.
    """
    identity = workdir / "run.json"
    accepted = "accepted: a directory that `train` has written a checkpoint to"
    if not identity.is_file():
        raise ConfigError(f"workdir is {str(workdir)!r}, which has no run.json; {accepted}")
    written = json.loads(identity.read_text())
    config = TrainConfig.from_dict(written["config"])
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"workdir is {str(workdir)!r}, which has no checkpoints; {accepted}")
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        if checkpoints.latest_step() is None:
            raise ConfigError(f"workdir is {str(workdir)!r}, which has no checkpoint yet; {accepted}")
        optimizer = make_optimizer(config.optimizer, config.steps)
        state, _ = checkpoints.restore(abstract_state(config, optimizer, make_mesh(MeshConfig())))
    finally:
        checkpoints.close()
    return TrainedRun(config, state, written["corpus"]["digest"])
