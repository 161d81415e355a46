"""Every router in every execution with every type of tokens, masks and indices, with and without 64-bit types.

The layer's result must be the oracle's for the same numbers as float32, bool and int32, or the call is refused in one
line. Two worker processes: one without 64-bit types, one with them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.campaign.outcomes import Failure, Part, place_of, problem_of

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float16", "bfloat16", "float64")
TOLERANCE = 1e-5
SECONDS = 1800
"""Seconds after which a worker counts as hanging."""
B, S, D, E, F = 2, 8, 8, 4, 8


def work(log: Path, wide: bool) -> None:
    """Runs all cases with or without 64-bit types; writes a line for each."""
    import jax
    import numpy as np

    from moe_jax.experts.executions import EXECUTIONS
    from moe_jax.layers.mode import Mode
    from moe_jax.layers.moe import MoE, MoEConfig
    from moe_jax.routing import ROUTERS
    from tests.routing.routers import K

    assert jax.config.jax_enable_x64 == wide
    rng = np.random.default_rng(0)
    drawn, valid = rng.normal(size=(B, S, D)).astype(np.float32), rng.random((B, S)) < 0.7
    ids, positions = rng.integers(0, 50, (B, S)), np.tile(np.arange(S), (B, 1))
    with log.open("w") as file:
        for i, (name, router) in enumerate(ROUTERS.items()):
            # Numbers that half precision holds exactly, so that every type means the same.
            x = drawn.astype(jax.numpy.bfloat16).astype(np.float16)
            factor, group = 1.0 if router.drops else None, S if router.needs_group_size else None
            fields = {"num_experts": E, "router": name, "k": K[name], "capacity_factor": factor, "group_size": group}
            config = MoEConfig(**fields, expert_dim=F, ffn="swiglu", execution="oracle")
            plain = x.astype(np.float32), valid, ids.astype(np.int32), positions.astype(np.int32)
            with jax.enable_x64(False):
                variables = jax.jit(MoE(config).init)(
                    {"params": jax.random.key(0), "routing": jax.random.key(1)}, *plain
                )
                state = {key: value for key, value in variables.items() if key != "routing"}
                expected = [
                    outcome_of(MoE(config, Mode(training=training)), state, plain) for training in (False, True)
                ]
            for j, execution in enumerate(EXECUTIONS):
                layer_config = MoEConfig(**fields, expert_dim=F, ffn="swiglu", execution=execution)
                for k, mask in enumerate(("bool", *INTEGERS, "float32")):
                    # Each type of tokens and of indices meets each router, each execution and each type of masks.
                    real = FLOATS[(i + j + k) % len(FLOATS)]
                    index = INTEGERS[(i + 2 * j + k) % len(INTEGERS)] if mask != "float32" else "int32"
                    given = x.astype(real), valid.astype(mask), ids.astype(index), positions.astype(index)
                    # Routers that draw do it in training.
                    training = (j + k) % 2 == 1
                    layer = MoE(layer_config, Mode(training=training))
                    case = f"{name} {execution} x={real} token_valid={mask} ids={index} x64={wide} training={training}"
                    outcome, problem = judge(layer, state, given, expected[training], mask == "float32")
                    file.write(json.dumps({"case": case, "outcome": outcome, "problem": problem}) + "\n")
                    file.flush()
            jax.clear_caches()


def outcome_of(layer: Any, state: Any, given: tuple[Any, ...]) -> Any:
    """Returns the layer's output and its router's metrics."""
    import jax

    def apply(state: Any, *given: Any) -> Any:
        return layer.apply(state, *given, rngs={"routing": jax.random.key(2)}, mutable=["routing"])

    return jax.device_get(jax.jit(apply)(state, *given))


def judge(layer: Any, state: Any, given: tuple[Any, ...], expected: Any, refuses: bool) -> tuple[str, str | None]:
    """Runs a case; returns its outcome and, of a failure, what went wrong."""
    import jax
    import numpy as np

    from moe_jax.configuration import ConfigError

    try:
        found = outcome_of(layer, state, given)
    except ConfigError as error:
        return "refused in one line", problem_of(str(error)) or (None if refuses else f"refused: {error}")
    except Exception as error:
        return "traceback", place_of(error)
    if refuses:
        return "the oracle's numbers", "a mask of floats is accepted"
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        scale = max(np.abs(other).max(initial=0.0), 1e-30)
        if one.shape != other.shape or not np.abs(one - other).max(initial=0.0) <= TOLERANCE * scale:
            return "the oracle's numbers", f"other numbers at {jax.tree_util.keystr(path)}"
    return "the oracle's numbers", None


def run(folder: Path, seed: int) -> Part:
    """Runs both workers and counts their cases, which are all there are: nothing is drawn by `seed`."""
    part = Part("Layers: every router, execution and type, x64 off and on, against the oracle")
    started, processes = time.time(), {}
    for wide in (False, True):
        log = folder / f"x64-{wide}.jsonl"
        words = [sys.executable, "-m", "tests.campaign.layer_types", str(log), str(int(wide))]
        environment = os.environ | {"JAX_ENABLE_X64": str(int(wide))}
        with (folder / f"x64-{wide}.log").open("w") as errors:
            processes[log] = subprocess.Popen(words, env=environment, stdout=errors, stderr=errors)
    for log, process in processes.items():
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = "hangs"
        for line in map(json.loads, log.read_text().splitlines() if log.exists() else []):
            if line["problem"] is None:
                part.counts[line["outcome"]] += 1
            else:
                part.fail(Failure(f"{line['outcome']}: {line['problem']}", line["case"], len(line["case"])))
        if status != 0:
            part.fail(Failure(f"the process ended with {status}", log.with_suffix(".log").read_text()[-500:]))
    part.seconds = time.time() - started
    return part


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("wide", type=int)
    options = parser.parse_args()
    work(options.log, bool(options.wide))
