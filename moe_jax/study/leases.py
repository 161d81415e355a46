"""Leases, by which workers on one machine or many share out the runs of a folder: one worker to a run at a time.

A lease on `NAME` is a file `NAME.lease0` that only one worker succeeds in making. It says who holds it and counts
heartbeats. A worker that sees a lease without a heartbeat for long takes it over by making the file of the next number,
`NAME.lease1`: of two that try, one succeeds. A holder that was only asleep finds the higher number and stops.

The clocks of machines are never compared: each worker watches the count of heartbeats by a clock of its own.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

BEAT_SECONDS = 10.0
WAIT_SECONDS = 0.5
PATIENCE_SECONDS = 120.0
"""After so long without a heartbeat a worker on another machine counts as dead."""


def stop_at_once(name: str) -> None:
    """Ends this process, because two that train one run would write to the same files."""
    print(
        f"{name}: another worker has taken this run over; this one was silent for too long and stops", file=sys.stderr
    )
    sys.stderr.flush()
    os._exit(1)


class Leases:
    """The leases that this process holds in one folder; a context, at whose end they are released.

    Args:
      folder: shared by all workers; made when a lease is asked for.
      patience: seconds without a heartbeat after which a lease is taken over; heartbeats are 12 times as frequent.
      on_loss: called with the name of a lease that another worker has taken over from this one.
    """

    def __init__(
        self, folder: Path, patience: float = PATIENCE_SECONDS, on_loss: Callable[[str], None] = stop_at_once
    ) -> None:
        self.folder = folder
        self.patience = patience
        self.on_loss = on_loss
        self._host = socket.gethostname()
        self._held: dict[str, Path] = {}
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._beats = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def acquire(self, name: str) -> bool:
        """Tries to get a lease, a dead worker's too; returns whether this process now holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._files(name)
        if files and not self._is_dead(files[-1]):
            return False
        path = self.folder / f"{name}.lease{_number(files[-1]) + 1 if files else 0}"
        try:
            with path.open("xb") as file:
                file.write(self._content())
        except FileExistsError:
            return False
        with self._lock:
            self._held[name] = path
        return True

    def wait_for(self, name: str) -> None:
        """Waits until this process has got a lease."""
        while not self.acquire(name):
            time.sleep(min(WAIT_SECONDS, self.patience / 4))

    def release(self, name: str) -> None:
        """Gives a lease back; nothing happens if this process does not hold it."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is not None:
            # The highest last, so that at no moment an older one seems to be in force.
            for path in self._files(name):
                if _number(path) <= _number(held):
                    path.unlink(missing_ok=True)

    def _files(self, name: str) -> list[Path]:
        """Returns the files of a lease; the last is in force."""
        found = [path for path in self.folder.iterdir() if path.name.startswith(f"{name}.lease")]
        return sorted(found, key=_number)

    def _content(self) -> bytes:
        return json.dumps({"host": self._host, "process": os.getpid(), "beats": self._beats}).encode()

    def _is_dead(self, path: Path) -> bool:
        """Says whether a lease's holder is a process of this machine that has ended, or was silent for too long."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        with contextlib.suppress(ValueError):
            holder = json.loads(content)
            if holder["host"] == self._host and not _is_alive(holder["process"]):
                return True
        before, since = self._seen.get(path, (None, 0.0))
        if content != before:
            self._seen[path] = content, time.monotonic()
            return False
        return time.monotonic() - since > self.patience

    def _keep_beating(self) -> None:
        while not self._end.wait(min(BEAT_SECONDS, self.patience / 12)):
            self._beats += 1
            with self._lock:
                held = dict(self._held)
            for name, path in held.items():
                if not self._beat(name, path):
                    self.on_loss(name)

    def _beat(self, name: str, path: Path) -> bool:
        """Writes a heartbeat; returns whether the lease is still this process's."""
        try:
            if self._files(name)[-1:] != [path]:
                return name not in self._held
            # Without making it anew: it is gone if another worker took the lease over and has released it.
            with path.open("r+b") as file:
                file.write(self._content())
        except FileNotFoundError:
            return name not in self._held
        except OSError:
            # A shared folder may be out of reach for a while.
            pass
        return True


def _number(path: Path) -> int:
    return int(path.suffix.removeprefix(".lease"))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
