"""TensorBoard's file of a run. This module imports tensorboardX, which imports torch where there is one: seconds."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from moe_jax.runtime.files import GrowingFile, writing


class Board:
    """A file of scalars for TensorBoard.

    tensorboardX's own writer has a thread, which ends at the first error; the training would then wait for it forever.

    Args:
      folder: folder of the file, made if need be.
      step: TensorBoard forgets the scalars of this step and later ones in older files of the folder.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # Names have seconds: a session that begins in the second of another would write to its file.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.from-{step}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._file = GrowingFile(folder / name)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        """Appends a record in TFRecord's form: its length, the checksum of that, the content, its checksum."""
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
        self._file.write(b"".join((length, next(sums), content, next(sums))))

    def flush(self) -> None:
        """Waits until all is on disk."""
        self._file.flush()

    def close(self) -> None:
        """Waits until all is on disk, and closes the file."""
        self._file.close()
