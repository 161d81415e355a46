"""The table of results: one line of JSON per finished run in `results.jsonl`."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from moe_jax.configuration import ConfigError
from moe_jax.runtime.files import read_json_lines

ARM = "@"
"""Separates a model from the share of its steps in the name of an arm, a shorter run: `switch-16@1of2`."""


class Point(TypedDict):
    """One evaluation of a run.

    Attributes:
      step: steps of training before it.
      tokens: tokens of training before it.
      seconds: seconds of training before it, without compilation, evaluation and checkpoints.
      validation_loss: nats per token.
      bits_per_byte: the same loss per byte of text.
      routing: each metric of `moe_jax.routing.metrics` on validation text; {} for a dense model.
      training: those metrics of `routing` that the training step logged; {} for a dense model.
      load: the share of each expert by layer; a layer's name ends in its index (`layer_3`); {} for a dense model.
      scores: what the task measures besides the loss, if anything.
    """

    step: int
    tokens: int
    seconds: float
    validation_loss: float
    bits_per_byte: float
    routing: dict[str, float]
    training: NotRequired[dict[str, float]]
    load: dict[str, list[float]]
    scores: NotRequired[dict[str, float]]


class Row(TypedDict):
    """One finished run.

    Attributes:
      name: the model.
      seed: of the run.
      run: folder of the run that the row is of.
      digest: of what differs from the defaults in `config`, the seed aside.
      config: the full nested configuration, with name and seed.
      corpus: `name` and `digest` of the text, as tokens, that it was trained and validated on.
      git_revision: of the code, when training began; see `moe_jax.study.provenance`.
      host: the machine; see `moe_jax.study.provenance`.
      versions: of the libraries; see `moe_jax.study.provenance`.
      finished: ISO time.
      seconds: of training, without compilation.
      compile_seconds: of compilation.
      parameters: `total`, `active` and `network`; see `moe_jax.accounting.parameters.ParameterCount`.
      flops_per_token: training FLOPs per token, forward and backward.
      curve: one entry per evaluation, in order of steps.
      scores: those of the last evaluation, if the task has any.
      diverged: true for a run that diverged; its curve ends with its last evaluation.
      step_seconds: of one step, timed apart from training (`moe_jax.study.step_costs`); added by `read_study`.
      step_joules: of one step, likewise; None on a machine that does not count them.
      arms: rows of the model's shorter runs with this seed, each with a complete schedule; added by `read_study`.
    """

    name: str
    seed: int
    run: NotRequired[str]
    digest: NotRequired[str]
    config: dict[str, Any]
    corpus: dict[str, str]
    git_revision: str
    host: dict[str, Any]
    versions: dict[str, str]
    finished: str
    seconds: float
    compile_seconds: float
    parameters: dict[str, int]
    flops_per_token: int
    curve: list[Point]
    scores: NotRequired[dict[str, float]]
    diverged: NotRequired[bool]
    step_seconds: NotRequired[float]
    step_joules: NotRequired[float | None]
    arms: NotRequired[list["Row"]]


class Score(TypedDict):
    """A run's answers to one task's questions after one number of solved examples; a line of `scores.jsonl`.

    The line also has the fields of `moe_jax.evaluation.few_shot.score_rows`.

    Attributes:
      run: folder of the run.
      name: the model.
      seed: of the run.
      task: a name in `moe_jax.evaluation.questions.CORPUS_TASKS`.
      shots: solved examples before a question.
      lines: lines of a question's context.
      asked: number of questions.
      examples: number of questions answered.
      accuracy: share of them answered correctly.
      chance: accuracy of guessing; 0 where nothing can be guessed.
      demonstrations: solved examples that there was room for, on average.
    """

    run: str
    name: str
    seed: int
    task: str
    shots: int
    lines: int
    asked: int
    examples: int
    accuracy: float
    chance: float
    demonstrations: float


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a line and waits until it is on disk; several processes may append to one table.

    Half a line that a kill left at the end is removed first.
    """
    line = json.dumps(row).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        # Until the file is closed.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Any]:
    """Reads the lines of a table in the order they were appended; a missing file has none. See `read_json_lines`."""
    return read_json_lines(path)


def read_study(directory: Path) -> list[Row]:
    """Reads the rows of `results.jsonl`, those of whole runs.

    Each has the costs of a step of its model if `step_costs.json` has them, and its arms if there are any.
    """
    path = directory / "step_costs.json"
    costs = json.loads(path.read_text()) if path.exists() else {"models": {}}
    rows, arms = [], {}
    for row in read_rows(directory / "results.jsonl"):
        model, _, share = row["name"].partition(ARM)
        row |= _step_costs(costs["models"].get(model))
        if share:
            arms.setdefault(_model_and_seed(row, model), []).append(row)
        else:
            rows.append(row)
    found = [(row, arms.get(_model_and_seed(row, row["name"]))) for row in rows]
    return [row if own is None else row | {"arms": own} for row, own in found]


def _model_and_seed(row: Row, model: str) -> tuple[str, int, str]:
    """Returns what a run and its arms share: models of one name may run on several tasks."""
    return model, row["seed"], json.dumps(row["config"]["data"], sort_keys=True)


def _step_costs(cost: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {} if cost is None else {"step_seconds": cost["seconds"], "step_joules": cost["joules"]}


def step_seconds(row: Row) -> float:
    """Returns the seconds of a training step: as timed apart from training, or else the mean of the run."""
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
        if _setting(first.setdefault(name, row)) != _setting(row):
            raise ConfigError(f"name is {name!r} in rows of two configurations; accepted: one configuration per name")
        if (name, seed) in seen:
            raise ConfigError(f"seed is {seed} in two rows of {name!r}; accepted: one row per name and seed")
        seen.add((name, seed))


def final_loss(row: Row) -> float:
    """Returns the validation loss after the last step, in nats per token."""
    return row["curve"][-1]["validation_loss"]


def _setting(row: Row) -> str | dict[str, Any]:
    """Returns what the rows of one model share; a field that was added between two of them makes no difference."""
    without_seed = {key: value for key, value in row["config"].items() if key != "seed"}
    return row.get("digest", without_seed)
