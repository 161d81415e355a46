"""Runs whose disk is full at a moment: one line of error that names what could not be written; with space, they go on.

Other runs may write no file above a size, which ends them within the writing of a file. The disk is a file system in
memory of a size that was drawn, in a mount namespace of its own, which a user without rights may make, too. There the
same command runs twice: with little space, then with enough.
"""

import concurrent.futures
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.campaign.interruptions import SETS
from tests.campaign.outcomes import Failure, Part

POINTS = 10
LIMITS = 6
"""Runs that may write no file above a size."""
WORKERS = 2
SECONDS = 300
REFUSED = ("1", "2")
"""Exit statuses where a disk is full: for the files of a run, and for the cache, which a setting puts elsewhere."""
ENOUGH = "256m"
LARGE = 1 << 18
"""KiB of a disk that has space enough."""
SCRIPT = """
mount -t tmpfs -o size={little}k tmpfs {disk} || exit 99
(ulimit -f {blocks}; exec timeout {seconds} {command} >{name}.out 2>{name}.first)
echo $? >{name}.status
mount -o remount,size={enough} {disk}
timeout {seconds} {command} >>{name}.out 2>{name}.second
echo $? >>{name}.status
cp {disk}/run/metrics.jsonl {name}.metrics
du -sk {disk} | cut -f1 >{name}.size
"""


def run(folder: Path, seed: int) -> Part:
    """Fills the disk at POINTS moments of a run."""
    from tests.training.tiny_runs import tiny_values, write_config, write_corpus

    part = Part(f"Disk full at {POINTS} moments, files limited to {LIMITS} sizes; then the same command with space")
    started, draw = time.time(), random.Random(seed)
    config = write_config(folder / "config.py", tiny_values(write_corpus(folder / "corpus"), SETS))
    if shutil.which("unshare") is None:
        part.fail(Failure("no unshare (util-linux), by which a small disk is mounted", ""))
        return part
    undisturbed = fill(folder, config, "undisturbed", LARGE, "unlimited")
    statuses = read(undisturbed, "status").split()
    if statuses != ["0", "0"]:
        part.fail(Failure("the undisturbed run fails", f"{statuses} {read(undisturbed, 'first')[-500:]}"))
        return part
    size = int(read(undisturbed, "size"))
    points = [(draw.randint(4, size), "unlimited") for _ in range(POINTS)]
    points += [(LARGE, str(draw.randint(1, 40))) for _ in range(LIMITS)]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        names = pool.map(lambda each: fill(folder, config, f"full-{each[0]}", *each[1]), enumerate(points))
        for (little, blocks), name in zip(points, names, strict=True):
            kind = f"a disk of {little} KiB" if blocks == "unlimited" else f"files of at most {blocks} blocks"
            part.add(*judge(name, undisturbed), f"{kind} for a run of {size} KiB")
    part.seconds = time.time() - started
    return part


def fill(folder: Path, config: Path, name: str, little: int, blocks: str) -> Path:
    """Runs twice on a disk of its own; returns where its files begin."""
    disk, name = folder / f"disk-{name}", folder / name
    disk.mkdir()
    command = [sys.executable, "-m", "moe_jax", "train", str(config), "--workdir", str(disk / "run")]
    script = SCRIPT.format(
        little=little,
        blocks=blocks,
        disk=disk,
        seconds=SECONDS,
        command=shlex.join(command),
        name=name,
        enough=ENOUGH,
    )
    environment = os.environ | {"MOE_JAX_CACHE": str(disk / "cache")}
    rights = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    with Path(f"{name}.log").open("w") as log:
        subprocess.run(
            ["unshare", *rights, "--mount", "sh", "-c", script], env=environment, stdout=log, stderr=log, check=False
        )
    return name


def read(name: Path, suffix: str) -> str:
    path = Path(f"{name}.{suffix}")
    return path.read_text(errors="replace") if path.exists() else ""


def judge(name: Path, undisturbed: Path) -> tuple[str, str | None]:
    statuses, said = read(name, "status").split(), read(name, "first")
    if len(statuses) != 2:
        return "no disk", read(name, "log")[-300:]
    first, second = statuses
    if first == "124":
        return "hangs", said[-300:]
    lines = [line for line in said.splitlines() if "cannot be written: " in line]
    outcome = "in one line with the path" if first != "0" else "which had space enough"
    problem = None
    if "Traceback" in said:
        problem = f"a traceback: {said.splitlines()[-1][:200]}"
    elif first in REFUSED and (len(lines) != 1 or str(name.parent) not in lines[0]):
        problem = f"{len(lines)} lines of a full disk: {said[-300:]!r}"
    elif first not in ("0", *REFUSED):
        problem = f"status {first}: {said[-300:]!r}"
    elif second != "0" or "Traceback" in read(name, "second"):
        problem = f"then status {second}: {read(name, 'second')[-300:]!r}"
    elif read(name, "metrics") != read(undisturbed, "metrics"):
        problem = "other metrics"
    return f"refused {outcome}, resumed bit for bit" if first != "0" else f"{outcome}, the same", problem
