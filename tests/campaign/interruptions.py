"""Runs that are killed or asked to stop, at moments drawn and at places chosen; each then ends as if undisturbed."""

import concurrent.futures
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.campaign import children
from tests.campaign.outcomes import Failure, Part

KILLS = {"moment": 20, "checkpoint": 10, "append": 10, "cache": 10}
"""Runs that are killed, by where: at a moment drawn, or at a place."""
PLACES = {
    "moment": "at a moment drawn",
    "checkpoint": "within a checkpoint",
    "append": "within an append",
    "cache": "within a write of the cache",
}
TERMINATIONS = 20
WORKERS = 2
SECONDS = 300
"""Seconds after which a run counts as hanging."""
SETS = {
    "steps": 24,
    "eval_every": 8,
    "checkpoint_every": 4,
    "data.tokenizer": "bpe:300",
    "model.vocab_size": 300,
}


class Runs:
    """A configuration, its undisturbed run, and runs of it that are disturbed."""

    def __init__(self, folder: Path) -> None:
        from tests.training.tiny_runs import tiny_values, write_config, write_corpus

        self.folder, self.context = folder, children.processes()
        self.config = write_config(folder / "config.py", tiny_values(write_corpus(folder / "corpus"), SETS))
        self.undisturbed = folder / "undisturbed"
        # The first compiles for all; the second is timed.
        for name in ("first", "undisturbed"):
            begun = time.monotonic()
            status = self.train(folder / name)
            assert status == 0, self.log(folder / name)
            self.seconds = time.monotonic() - begun

    def log(self, workdir: Path) -> str:
        return Path(f"{workdir}.log").read_text(errors="replace")

    def start(self, workdir: Path, place: tuple[str, int] | None = None, cache: Path | None = None) -> Any:
        arguments = self.config, workdir, Path(f"{workdir}.log"), [], place, cache or self.folder / "cache"
        process = self.context.Process(target=children.train, args=arguments)
        process.start()
        return process

    def train(self, *arguments: Any) -> int | None:
        """Trains to the end; returns the status, None if it hangs."""
        return self.wait(self.start(*arguments))

    def wait(self, process: Any) -> int | None:
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
        return process.exitcode

    def places(self, kind: str) -> int:
        """Counts how often a run comes to a kind of place."""
        workdir = self.folder / f"counted-{kind}"
        status = self.train(workdir, (kind, 0), self.folder / f"cache-{kind}")
        assert status == 0, self.log(workdir)
        return int(Path(f"{workdir}.{kind}").read_text())

    def problem(self, workdir: Path, cache: Path) -> str | None:
        """Goes on with a disturbed run; says what is not as if it had not been disturbed."""
        status = self.train(workdir, None, cache)
        if status != 0:
            return f"goes on with status {status}: {self.log(workdir)[-300:]!r}"
        if "Traceback" in self.log(workdir):
            return "a traceback in its log"
        same = (workdir / "metrics.jsonl").read_bytes() == (self.undisturbed / "metrics.jsonl").read_bytes()
        return None if same else "other metrics"


def run(folder: Path, seed: int) -> Part:
    """Kills runs and asks others to stop."""
    part = Part("Interruptions: SIGKILL and SIGTERM, then the same command again")
    started, draw = time.time(), random.Random(seed)
    runs = Runs(folder)
    tasks: list[tuple[str, Any]] = []
    for kind, count in KILLS.items():
        last = 0 if kind == "moment" else runs.places(kind)
        for i in range(count):
            where = draw.uniform(0.0, 1.0) if kind == "moment" else draw.randint(1, last)
            tasks.append((f"SIGKILL {PLACES[kind]}", (kind, where, i)))
    tasks += [("SIGTERM", ("stop", draw.uniform(0.0, 1.0), i)) for i in range(TERMINATIONS)]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(lambda task: (*task, *disturb(runs, *task[1])), tasks))
    workdirs = [workdir for *_, workdir, problem in results if problem is None]
    process = runs.context.Process(target=children.compare, args=(runs.undisturbed, workdirs, folder / "other"))
    process.start()
    process.join()
    other = (folder / "other").read_text().split("\n") if process.exitcode == 0 else [path.name for path in workdirs]
    for outcome, case, said, workdir, problem in results:
        problem = problem or ("another last state" if workdir.name in other else None)
        if problem is None:
            part.counts[f"{outcome}: {said}, resumed bit for bit"] += 1
        else:
            part.fail(Failure(f"{outcome}: {problem}", f"{case}"))
    part.seconds = time.time() - started
    return part


def disturb(runs: Runs, kind: str, where: float, number: int) -> tuple[str, Path, str | None]:
    """Disturbs one run and goes on with it; returns what was seen, its directory, and what went wrong."""
    workdir, cache = runs.folder / f"{kind}-{number}", runs.folder / "cache"
    if kind == "cache":
        cache = runs.folder / f"cache-{number}"
    if kind in ("moment", "stop"):
        process = runs.start(workdir)
        if kind == "stop":
            # From before the first line of metrics on a run listens; the last lines come too fast to be waited for.
            wait_for_lines(process, workdir, 1 + int(where * 15))
        else:
            time.sleep(where * runs.seconds * 1.2)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL if kind == "moment" else signal.SIGTERM)
    else:
        process = runs.start(workdir, (kind, int(where)), cache)
    status = runs.wait(process)
    expected = {-signal.SIGKILL: "ended at once", 128 + signal.SIGTERM: "saved its step", -signal.SIGTERM: "at its end"}
    said = "had ended before" if status == 0 else expected.get(status)
    problem = None if said else f"ended with {status}: {runs.log(workdir)[-300:]!r}"
    if kind == "stop" and status == 128 + signal.SIGTERM:
        steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
        line = f"stopped by SIGTERM after step {max(steps)}, which is saved"
        problem = None if runs.log(workdir).count(line) == 1 else "does not say which step it saved"
    return said or "", workdir, problem or runs.problem(workdir, cache)


def wait_for_lines(process: Any, workdir: Path, lines: int) -> None:
    path = workdir / "metrics.jsonl"
    while process.is_alive() and not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        time.sleep(0.002)
