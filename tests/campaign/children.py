"""Trainings that end themselves at a place: within a checkpoint, an append, or a write of a cache.

Each runs in a fork of a server that has imported everything and started nothing, so that it begins at once.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

PRELOADED = [
    "moe_jax.cli",
    "moe_jax.training.loop",
    "moe_jax.training.trained",
    "tensorboardX",
    "tests.campaign.children",
]
# Events of Python's audit that change files, with the place of the changed path in their arguments.
CHANGES = {"open": 0, "os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "shutil.rmtree": 0}
UNIT = 7
"""Bytes of a line that is cut off where a process ends within an append."""


def processes() -> Any:
    """The context whose processes are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def train(config: Path, workdir: Path, log: Path, sets: list[str], place: tuple[str, int] | None, cache: Path) -> None:
    """Runs the command line; ends at `place`, a kind of place and a number of times that it is reached."""
    os.environ["MOE_JAX_CACHE"] = str(cache)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from moe_jax.cli import main

    if place is not None:
        end_at(*place, workdir, cache)
    words = [word for one in sets for word in ("--set", one)]
    raise SystemExit(main(["train", str(config), "--workdir", str(workdir), *words]))


def end_at(kind: str, number: int, workdir: Path, cache: Path) -> None:
    """Lets this process end itself when it comes to the place for this time; number 0 counts them in a file."""
    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        if number == 0:
            Path(f"{workdir}.{kind}").write_text(str(count))
        return count == number

    if kind == "append":
        from moe_jax.training.records import StepLog

        append = StepLog.append

        def append_half(self: StepLog, line: dict[str, Any]) -> None:
            append(self, line)
            if reached():
                path = Path(self.file.path)
                os.truncate(path, path.stat().st_size - UNIT)
                os.kill(os.getpid(), signal.SIGKILL)

        StepLog.append = append_half
        return
    below = str(workdir / "checkpoints" if kind == "checkpoint" else cache)
    busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if event not in CHANGES or busy:
            return
        path, mode = arguments[CHANGES[event]], arguments[2] if event == "open" else os.O_WRONLY
        writes = isinstance(mode, int) and mode & (os.O_WRONLY | os.O_RDWR)
        if isinstance(path, str | os.PathLike) and writes and os.fspath(path).startswith(below):
            busy = True
            if reached():
                os.kill(os.getpid(), signal.SIGKILL)
            busy = False

    sys.addaudithook(hook)


def compare(undisturbed: Path, workdirs: list[Path], found: Path) -> None:
    """Writes the names of the runs whose last state is not that of the undisturbed one, bit for bit."""
    import jax
    import numpy as np

    from moe_jax.training.trained import load_run

    def leaves(workdir: Path) -> list[Any]:
        state = load_run(workdir).state
        return [np.asarray(leaf) for leaf in jax.tree.leaves((state.step, state.params, state.opt_state))]

    expected = leaves(undisturbed)
    other = [
        workdir.name
        for workdir in workdirs
        if not all(np.array_equal(*pair, equal_nan=True) for pair in zip(leaves(workdir), expected, strict=True))
    ]
    found.write_text("\n".join(other))
