"""Checkpoints of a run: everything a step changes, and where in the data it stood."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def complete_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in `directory`, none where there is no such folder; nothing is written."""
    return ocp.utils.checkpoint_steps(directory.absolute()) if directory.is_dir() else []


class Checkpoints:
    """The newest checkpoint of one run, complete or absent.

    Args:
      directory: where it lies; made if need be. An older one goes when a newer one is complete.
    """

    def __init__(self, directory: Path) -> None:
        # What a killed process left half written is never read; it would only fill the disk.
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Writes in the background: the arrays of `state`, and `position` as JSON."""
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=arguments)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint, its arrays with the shapes, types and placement of `like`'s."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest_step(), args=arguments)
        return restored.state, restored.position

    def position(self) -> dict[str, Any]:
        """What was saved as `position` with the newest checkpoint, once it is written."""
        self._manager.wait_until_finished()
        arguments = ocp.args.Composite(position=ocp.args.JsonRestore())
        return self._manager.restore(self.latest_step(), args=arguments).position

    def close(self) -> None:
        """Waits until all is written."""
        self._manager.wait_until_finished()
        self._manager.close()
