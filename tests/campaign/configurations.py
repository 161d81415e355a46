"""Configurations drawn over all fields: each is a run of two steps, or one line of error.

Worker processes draw and run, by the function of the command line; this process watches that none stands still.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.campaign.environment import write_pairs
from tests.campaign.outcomes import Failure, Part, place_of, problem_of

SECONDS_PER_CASE = 300
"""Seconds after which a case counts as hanging."""
WORKERS = 2
CONFIG = """
import json
from ml_collections import ConfigDict

def get_config(base):
    return ConfigDict(json.loads(open(__file__.replace("config.py", f"{base}.json")).read()))
"""
SMALL = {
    "steps": 2,
    "eval_every": 2,
    "eval_batches": 1,
    "log_every": 1,
    "checkpoint_every": 2,
    "optimizer.warmup_steps": 1,
    "model.num_layers": 2,
    "model.moe_layers": (1,),
    "model.moe.router": "switch",
    "model.moe.k": 1,
}
PAIRED = {
    "model.architecture": "encoder_decoder",
    "model.attention.positions": "t5",
    "model.vocab_size": 260,
    "data.task": {"kind": "span_corruption", "target_length": 8, "sentinels": 3},
}
# The runs that are changed, and whether each has a mixture.
BASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "sparse": (True, {}),
    "dense": (False, {"model.moe_layers": (), "model.moe": None}),
    "masked": (True, {"model.causal": False, "model.vocab_size": 258, "data.task": "masked"}),
    "pair_of_stacks": (True, PAIRED),
    "text_to_text": (
        True,
        PAIRED
        | {
            "model.vocab_size": 257,
            "data.task": {"kind": "text_to_text", "target_length": 8},
            "data.corpus": "json_lines:PAIRS",
        },
    ),
    "distilled": (True, {"distillation": {"run": "teacher"}}),
    "started": (True, {"start": {"run": "teacher", "parts": "outside_mixtures"}}),
    "mesh": (True, {"mesh": {"data": 2, "expert": 2}, "model.moe.group_size": 16}),
}


def prepare(folder: Path) -> None:
    """Writes the corpora, the configurations of BASES, and a run to start from or to learn from."""
    from tests.training.tiny_runs import tiny_values, write_corpus

    corpus, pairs = write_corpus(folder / "corpus"), write_pairs(folder / "pairs.jsonl")
    (folder / "config.py").write_text(CONFIG)
    for name, (_, changes) in BASES.items():
        values = json.dumps(tiny_values(corpus, SMALL | changes)).replace("PAIRS", str(pairs))
        (folder / f"{name}.json").write_text(values)
    status, output = call(folder, "dense", [], folder / "runs" / "teacher")
    assert status == 0, output


def call(folder: Path, base: str, changes: Sequence[tuple[str, str]], workdir: Path) -> tuple[int, str]:
    """Runs the command line on a configuration; returns its status and what it wrote to stderr."""
    from moe_jax.cli import main

    words = ["train", f"{folder / 'config.py'}:{base}", "--workdir", str(workdir)]
    for path, value in changes:
        value = value.replace("CORPUS", str(folder / "corpus")).replace("PAIRS", str(folder / "pairs.jsonl"))
        words += ["--set", f"{path}={value}"]
    # As the program's own: what UTF-8 lacks is escaped.
    errors, output = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        try:
            status = main(words)
        except SystemExit as exit_:
            status = exit_.code
    output.flush()
    errors.flush()
    return status, errors.buffer.getvalue().decode()


def judge(folder: Path, base: str, changes: Sequence[tuple[str, str]]) -> tuple[str, str | None]:
    """Runs a case; returns its outcome and, of a failure, what went wrong."""
    workdir = folder / "runs" / f"case-{os.getpid()}"
    shutil.rmtree(workdir, ignore_errors=True)
    try:
        status, output = call(folder, base, changes, workdir)
    except Exception as error:
        return "traceback", place_of(error)
    if status == 0:
        return "ran two steps", None if (workdir / "checkpoints").is_dir() else "no checkpoint"
    if status == 2:
        problem = problem_of(output) or ("it wrote files" if workdir.exists() else None)
        return "refused in one line", problem
    last = output.splitlines()[-1] if output else ""
    if status == 1 and "training diverged" in last:
        return "diverged, said in one line", problem_of(last)
    return f"status {status}", f"says {last[:200]!r}"


def minimise(folder: Path, base: str, changes: list[tuple[str, str]], problem: str) -> list[tuple[str, str]]:
    """Leaves out changes for as long as the case fails in the same way."""
    for one in list(changes):
        fewer = [other for other in changes if other is not one]
        if judge(folder, base, fewer)[1] == problem:
            changes = fewer
    return changes


def described(base: str, changes: Sequence[tuple[str, str]]) -> str:
    return " ".join([base, *(f"--set {path}={value!r}" for path, value in changes)])


def work(folder: Path, seed: int, first: int, count: int, until: float) -> None:
    """Draws and runs every WORKERS-th case from number `first` to `count`; writes a line before and after each."""
    import jax

    from tests.campaign.drawing import draw_case

    known: set[str] = set()
    bases = {name: sparse for name, (sparse, _) in BASES.items()}
    with (folder / f"worker-{first % WORKERS}.jsonl").open("a", buffering=1) as log:
        for number in range(first, count, WORKERS):
            if time.time() > until:
                return
            base, changes = draw_case(random.Random(f"{seed} {number}"), bases)
            log.write(json.dumps({"begins": number, "case": described(base, changes)}) + "\n")
            outcome, problem = judge(folder, base, changes)
            if problem is not None and problem not in known:
                known.add(problem)
                changes = minimise(folder, base, changes, problem)
            case = f"case {number}: {described(base, changes)}"
            log.write(json.dumps({"outcome": outcome, "problem": problem, "case": case}) + "\n")
            if number % 1000 < WORKERS:
                jax.clear_caches()


def start(folder: Path, seed: int, first: int, count: int, until: float) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.campaign.configurations", *map(str, (folder, seed, first, count, until))]
    with (folder / f"worker-{first % WORKERS}.log").open("w") as errors:
        return subprocess.Popen(words, stdout=errors, stderr=errors)


def run(folder: Path, seed: int, count: int, until: float) -> Part:
    """Draws `count` cases, or as many of them as begin before the time `until`, in WORKERS processes."""
    part = Part(f"Configurations: {count:,} to draw over all fields, sound and broken, for the command line")
    started = time.time()
    prepare(folder)
    running = {first: start(folder, seed, first, count, until) for first in range(WORKERS)}
    seen = dict.fromkeys(running, (0, time.time()))
    while running:
        time.sleep(0.5)
        for worker, process in list(running.items()):
            path = folder / f"worker-{worker}.jsonl"
            size = path.stat().st_size if path.exists() else 0
            if size != seen[worker][0]:
                seen[worker] = size, time.time()
            hangs = time.time() - seen[worker][1] > SECONDS_PER_CASE
            if process.poll() is None and not hangs:
                continue
            process.kill()
            status = process.wait()
            del running[worker]
            if hangs or status != 0:
                *_, last = [{"begins": worker - WORKERS, "case": ""}, *lines_of(path)]
                log = (folder / f"worker-{worker}.log").read_text(errors="replace")[-300:]
                what = f"hangs for {SECONDS_PER_CASE} s" if hangs else f"the process ended with {status}: {log}"
                part.fail(Failure(what, str(last), len(str(last))))
                if "begins" in last and time.time() < until:
                    running[worker] = start(folder, seed, last["begins"] + WORKERS, count, until)
                    seen[worker] = size, time.time()
    for worker in range(WORKERS):
        for line in lines_of(folder / f"worker-{worker}.jsonl"):
            if "outcome" in line:
                part.add(line["outcome"], line["problem"], line["case"])
    part.seconds = time.time() - started
    return part


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in (("folder", Path), ("seed", int), ("first", int), ("count", int), ("until", float)):
        parser.add_argument(name, type=kind)
    options = parser.parse_args()
    work(options.folder, options.seed, options.first, options.count, options.until)
