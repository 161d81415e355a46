"""Checkpoints of a run: the training state, the position in the data, and the clock."""

import contextlib
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from moe_jax.configuration import ConfigError
from moe_jax.runtime.files import WriteError, disk_reason

KEPT = 2
"""Checkpoints of a run that are kept: the newest, and the one before it in case that is damaged."""
CHECKSUMS = "checksums.json"
"""File of a checkpoint with the size and the CRC-32 of each of its other files."""
OVERHEAD = 1 << 20
"""Bytes of a checkpoint besides the numbers of its arrays, at most."""


def complete_steps(directory: Path) -> list[int]:
    """Lists the steps of the complete checkpoints in `directory`, [] if there is no such folder; writes nothing."""
    return ocp.utils.checkpoint_steps(directory.absolute()) if directory.is_dir() else []


def read_newest(directory: Path, like: Any) -> Any | None:
    """Reads the state of the newest intact checkpoint, None if there is no checkpoint; writes nothing.

    Another process may train meanwhile and replace the checkpoint that is being read; then the newer one is read.

    Args:
      directory: folder of the checkpoints.
      like: gives the shapes, types and sharding of the state's arrays.

    Raises:
      ConfigError: all checkpoints are damaged.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    while True:
        steps = complete_steps(directory)
        try:
            step, _ = newest_intact(directory)
            if step is None:
                return None
            with ocp.StandardCheckpointer() as reader:
                return reader.restore(directory.absolute() / str(step) / "state", abstract)
        except Exception:
            if complete_steps(directory) == steps:
                raise


def newest_intact(directory: Path) -> tuple[int | None, list[int]]:
    """Finds the newest complete checkpoint that is as it was written, and says aloud which newer ones are not.

    Returns:
      Its step, None if there is no checkpoint, and the steps of the damaged ones that are newer.

    Raises:
      ConfigError: there are checkpoints, and all are damaged.
    """
    damaged: list[int] = []
    words = []
    for step in sorted(complete_steps(directory), reverse=True):
        damage = find_damage(directory / str(step))
        if damage is None:
            for said in words:
                print(f"{said}; the checkpoint of step {step} is taken", file=sys.stderr, flush=True)
            return step, damaged
        damaged.append(step)
        words.append(f"checkpoint of step {step} is damaged: {damage}")
    if damaged:
        accepted = "accepted: a folder with an intact checkpoint, such as a copy, or none to train from the beginning"
        raise ConfigError(f"{str(directory)!r}: {words[0]}, and so are all before it; {accepted}")
    return None, []


def find_damage(checkpoint: Path) -> str | None:
    """Returns in words what differs from what was written in the folder of a checkpoint; None if nothing does.

    A checkpoint without checksums, which none of ours is, counts as intact.
    """
    if not (checkpoint / CHECKSUMS).exists():
        return None
    try:
        written = json.loads((checkpoint / CHECKSUMS).read_text())
        for name, (size, checksum) in written.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes for {size}"
            if _checksum(path) != checksum:
                return f"{name} has another checksum"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} or a file that it names cannot be read ({error})"
    return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _bytes_of(state: Any) -> int:
    """Counts the bytes that this process writes of a state."""
    arrays = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
    return sum(shard.data.nbytes for x in arrays for shard in x.addressable_shards if shard.replica_id == 0)


def _remove_damaged(directory: Path) -> None:
    """Removes the damaged checkpoints that are newer than an intact one; the first process does it for all."""
    problem = None
    if jax.process_index() == 0:
        try:
            for step in newest_intact(directory)[1]:
                shutil.rmtree(directory / str(step))
        except ConfigError as error:
            problem = error
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(problem is not None)):
        problem = problem or ConfigError(f"{str(directory)!r}: all checkpoints are damaged, as the first process says")
    if problem is not None:
        raise problem


class Checkpoints:
    """The newest checkpoint of one run; an unfinished one counts as none.

    Args:
      directory: folder of the checkpoints, made if need be. The newest KEPT are kept; damaged ones are removed.

    Raises:
      ConfigError: there are checkpoints, and all are damaged.
      WriteError: of all methods, the folder cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._saving = directory.absolute(), -1
        _remove_damaged(self._directory)
        logging.getLogger("absl").addFilter(_is_no_error_of_orbax)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=True,
            # A checkpoint that a killed process left unfinished is never read; it would only fill the disk.
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        with self._written():
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Raises WriteError for whatever orbax raises where a file cannot be written."""
        try:
            yield
        except WriteError:
            raise
        except Exception as error:
            reason = disk_reason(error)
            if reason is None:
                raise
            raise WriteError(f"{str(self._directory)!r} cannot be written: {reason}") from error

    def _seal(self) -> None:
        """Writes the checksums of a checkpoint whose files are all there, before it counts as complete."""
        if jax.process_index() > 0:
            return
        for folder in self._directory.glob(f"{self._saving}.*tmp*"):
            # Orbax goes on writing its own record beside the parts.
            files = [path for path in sorted(folder.glob("*/**/*")) if path.is_file()]
            sums = {path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}
            (folder / CHECKSUMS).write_text(json.dumps(sums))

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Writes the arrays of `state`, and `position` as JSON, in the background."""
        with self._written():
            self._manager.wait_until_finished()
            self._require_space(state)
            self._saving = step
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
            self._manager.save(step, args=arguments)

    def _require_space(self, state: Any) -> None:
        """Raises WriteError where a checkpoint does not fit on the disk, before half of one is written."""
        needed = _bytes_of(state) + OVERHEAD
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            sizes = f"a checkpoint takes up to {needed:,} bytes, and {free:,} are free"
            raise WriteError(f"{str(self._directory)!r} cannot be written: No space left on device: {sizes}")

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
        with self._written():
            self._manager.wait_until_finished()
        arguments = ocp.args.Composite(position=ocp.args.JsonRestore())
        return self._manager.restore(self.latest_step(), args=arguments).position

    def close(self) -> None:
        """Waits until everything is written, and closes the folder."""
        try:
            with self._written():
                self._manager.wait_until_finished()
                self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(_is_no_error_of_orbax)


def _is_no_error_of_orbax(record: logging.LogRecord) -> bool:
    """Returns whether to show a record: each thread of orbax logs the error that it also raises, with its frames."""
    return not (record.exc_info and "/orbax/" in record.pathname)
