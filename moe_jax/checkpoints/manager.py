"""Checkpoints of a run: the training state, the position in the data, and the clock."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def complete_steps(directory: Path) -> list[int]:
    """Lists the steps of the complete checkpoints in `directory`, [] if there is no such folder; writes nothing."""
    return ocp.utils.checkpoint_steps(directory.absolute()) if directory.is_dir() else []


class Checkpoints:
    """The newest checkpoint of one run; an unfinished one counts as none.

    Args:
      directory: folder of the checkpoints, made if need be. A new checkpoint replaces the old one once it is complete.
    """

    def __init__(self, directory: Path) -> None:
        # A checkpoint that a killed process left unfinished is never read; it would only fill the disk.
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Writes the arrays of `state`, and `position` as JSON, in the background."""
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=arguments)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the newest checkpoint, state and position; its arrays get the shapes, types and sharding of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest_step(), args=arguments)
        return restored.state, restored.position

    def position(self) -> dict[str, Any]:
        """Reads the `position` of the newest checkpoint, after waiting until it is written."""
        self._manager.wait_until_finished()
        arguments = ocp.args.Composite(position=ocp.args.JsonRestore())
        return self._manager.restore(self.latest_step(), args=arguments).position

    def close(self) -> None:
        """Waits until everything is written, and closes the folder."""
        self._manager.wait_until_finished()
        self._manager.close()
