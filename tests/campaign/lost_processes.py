"""Two processes as one run, of which one is killed: the other ends in bounded time, and both go on as one did."""

import concurrent.futures
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.campaign.outcomes import Failure, Part

MOMENTS = 10
WORKERS = 2
"""Pairs of processes at a time; they mostly wait for each other's silence to last."""
SECONDS_TO_END = 120
"""Seconds in which the other process has to end."""
SECONDS = 600
SETS = {"steps": 60, "eval_every": 30, "checkpoint_every": 10, "mesh": {"expert": 2, "data": 2}}


def start(folder: Path, config: Path, workdir: Path) -> list[subprocess.Popen]:
    """Two processes of two devices each."""
    flags = re.sub(r"device_count=\d+", "device_count=2", os.environ["XLA_FLAGS"])
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    processes = []
    for i in range(2):
        command = [sys.executable, "-m", "moe_jax", "train", str(config), "--workdir", str(workdir)]
        with Path(f"{workdir}-{i}.log").open("a") as log:
            words = [*command, "--distributed", f"localhost:{port},2,{i}"]
            processes.append(subprocess.Popen(words, env=os.environ | {"XLA_FLAGS": flags}, stdout=log, stderr=log))
    return processes


def finish(processes: list[subprocess.Popen], seconds: float) -> list[int | None]:
    """Waits for both; a process that has not ended then is killed, and its status is None."""
    deadline, statuses = time.monotonic() + seconds, []
    for process in processes:
        try:
            statuses.append(process.wait(max(deadline - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            statuses.append(None)
    return statuses


def run(folder: Path, seed: int) -> Part:
    """Kills one of two processes at MOMENTS moments."""
    from tests.training.tiny_runs import tiny_values, write_config, write_corpus

    part = Part(f"Two processes, one of them killed at {MOMENTS} moments, then both again")
    started, draw = time.time(), random.Random(seed)
    config = write_config(folder / "config.py", tiny_values(write_corpus(folder / "corpus"), SETS))
    undisturbed = folder / "undisturbed"
    if finish(start(folder, config, undisturbed), SECONDS) != [0, 0]:
        part.fail(Failure("the undisturbed run fails", Path(f"{undisturbed}-0.log").read_text()[-500:]))
        return part
    lines = (undisturbed / "metrics.jsonl").read_bytes().count(b"\n")
    # Each process is killed as often as the other: once before it has begun, then after lines of metrics.
    moments = [(i % 2, -1 if i < 2 else draw.randint(0, lines - 10)) for i in range(MOMENTS)]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = pool.map(lambda each: disturb(folder, config, undisturbed, *each), enumerate(moments))
        for (killed, after), (outcome, problem) in zip(moments, results, strict=True):
            part.add(outcome, problem, f"process {killed} killed after {after} lines of metrics")
    part.seconds = time.time() - started
    return part


def disturb(
    folder: Path, config: Path, undisturbed: Path, number: int, moment: tuple[int, int]
) -> tuple[str, str | None]:
    """Kills one of two processes, waits for the other, and runs both again."""
    killed, after = moment
    workdir = folder / f"lost-{number}"
    processes = start(folder, config, workdir)
    wait_for(processes, workdir, after)
    processes[killed].send_signal(signal.SIGKILL)
    processes[killed].wait()
    begun = time.monotonic()
    (status,) = finish([processes[1 - killed]], SECONDS_TO_END)
    took = time.monotonic() - begun
    said = Path(f"{workdir}-{1 - killed}.log").read_text(errors="replace")
    if status is None:
        return f"the other has not ended after {SECONDS_TO_END} s", repr(said[-300:])
    problem = None
    if "Traceback" in said:
        problem = f"a traceback: {said.splitlines()[-1][:200]}"
    elif status == 0:
        problem = "ended as if nothing had been"
    ours = "a process was lost" in said
    outcome = f"the other ended {'in one line of ours' if ours else 'in the words of jax'}, resumed bit for bit"
    if problem is None and not ours and "another task died" not in said and "Terminating process" not in said:
        problem = f"status {status}: {said[-300:]!r}"
    if problem is None and took > SECONDS_TO_END:
        problem = f"after {took:.0f} s"
    if problem is None:
        statuses = finish(start(folder, config, workdir), SECONDS)
        same = (
            statuses == [0, 0]
            and (workdir / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
        )
        problem = None if same else f"then statuses {statuses}, or other metrics"
    return outcome, problem


def wait_for(processes: list[subprocess.Popen], workdir: Path, lines: int) -> None:
    """Waits for lines of metrics, or for -1 until the directory is claimed."""
    path, deadline = workdir / ("metrics.jsonl" if lines >= 0 else "run.json"), time.monotonic() + SECONDS
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)
