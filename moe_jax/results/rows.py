"""The results table: one line of JSON per finished run in `results.jsonl`.

A row has the fields
  name, seed, config    which run: the model's name, the seed, and the full nested configuration (both within it too)
  corpus                {"name", "digest"} of the text it was trained and validated on
  git_revision, host, versions, finished    see `moe_jax.study.provenance`; `finished` is an ISO time
  seconds, compile_seconds                  of training without compilation, and of compilation
  parameters            {"total", "active", "network"}, see `moe_jax.accounting.parameters.ParameterCount`
  flops_per_token       training FLOPs per token, forward and backward
  curve                 one entry per evaluation, in order of steps: {"step", "tokens", "seconds", "validation_loss",
                        "bits_per_byte", "routing": {metric: number}, "training": {metric: number},
                        "load": {layer: [a number per expert]}}; `training` is what of `routing` the training step
                        logged; all three are {} for a dense model; a layer's name ends in its index (`layer_3`); and
                        "scores", {name: number}, where the task has any
  scores                those of the last evaluation, where there are any
  diverged              true, of a run that did; its curve ends where it was last evaluated
and, as `read_study` gives it where they were measured (`moe_jax.study.step_costs`),
  step_seconds, step_joules                 of a step, timed apart from training and by turns with the study's other
                        models; joules are None on a machine that does not count them
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError
from moe_jax.runtime.files import read_json_lines

Row = dict[str, Any]
Score = dict[str, Any]
"""A line of `scores.jsonl`; see `moe_jax.study.few_shot_scores`."""


def append_row(path: Path, row: Row) -> None:
    """Appends `row` and waits until it is on disk; half a line that a kill left at the end is removed first."""
    line = json.dumps(row).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """The rows in the order they were appended; see `read_json_lines`."""
    return read_json_lines(path)


def read_study(directory: Path) -> list[Row]:
    """The rows of `results.jsonl`, each with what `step_costs.json`, where it is there, says of a step of its model."""
    path = directory / "step_costs.json"
    costs = json.loads(path.read_text()) if path.exists() else {"models": {}}
    rows = read_rows(directory / "results.jsonl")
    return [row | _step_costs(costs["models"].get(row["name"])) for row in rows]


def _step_costs(cost: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {} if cost is None else {"step_seconds": cost["seconds"], "step_joules": cost["joules"]}


def step_seconds(row: Row) -> float:
    """Seconds of a training step: as timed by turns, or else of the run as it was."""
    return row.get("step_seconds") or row["seconds"] / row["curve"][-1]["step"]


def require_comparable(rows: Sequence[Row]) -> None:
    """Raises ConfigError unless the rows can stand in one table.

    They must share one corpus, and the rows of one name must differ in their seeds and in nothing else.
    """
    corpora = {row["corpus"]["digest"]: row["corpus"]["name"] for row in rows}
    if len(corpora) > 1:
        found = " and ".join(f"{name!r} with digest {digest}" for digest, name in corpora.items())
        raise ConfigError(f"corpus is {found}; accepted: rows of one corpus, because losses on two do not compare")
    first: dict[str, Row] = {}
    seen: set[tuple[str, int]] = set()
    for row in rows:
        name, seed = row["name"], row["seed"]
        if _without_seed(first.setdefault(name, row)["config"]) != _without_seed(row["config"]):
            raise ConfigError(f"name is {name!r} in rows of two configurations; accepted: one configuration per name")
        if (name, seed) in seen:
            raise ConfigError(f"seed is {seed} in two rows of {name!r}; accepted: one row per name and seed")
        seen.add((name, seed))


def final_loss(row: Row) -> float:
    """Validation loss after the last step, in nats per token."""
    return row["curve"][-1]["validation_loss"]


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "seed"}
