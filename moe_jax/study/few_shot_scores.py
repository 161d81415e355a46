"""Zero-, one- and few-shot scores of a study's runs, kept beside its results in `scores.jsonl`.

A line for each run, task and number of shots has the fields of `moe_jax.evaluation.few_shot.score_rows` and
  run                    folder of the run, which is different for different configurations
  name, seed             the model's name, and the seed it was trained with
  task, lines, asked     which questions: a name in CORPUS_TASKS, lines of a context, and how many
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_jax.configuration import require, require_name
from moe_jax.data.corpora import load_corpus
from moe_jax.evaluation.few_shot import score_rows, scorer_of
from moe_jax.evaluation.questions import CORPUS_TASKS, corpus_task
from moe_jax.results.rows import Score, append_row, read_rows
from moe_jax.study.sweep import run_directory, run_name
from moe_jax.training.config import TrainConfig
from moe_jax.training.trained import load_run

# What tells one line from another.
_KEY = ("run", "task", "shots", "lines", "asked")


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions that every run is asked, with the same solved examples for all.

    Attributes:
      tasks: by name in CORPUS_TASKS, the lines of a question's context.
      examples: questions of a task.
      shots: numbers of solved examples before a question.
    """

    tasks: Mapping[str, int]
    examples: int
    shots: tuple[int, ...] = (0, 1, 4)

    def __post_init__(self) -> None:
        for task, lines in self.tasks.items():
            require_name(task, CORPUS_TASKS, "tasks")
            require(lines >= 1, f"tasks.{task}", lines, "an integer of at least 1")
        require(self.examples >= 1, "examples", self.examples, "an integer of at least 1")
        require(min(self.shots) >= 0, "shots", self.shots, "integers of at least 0")


def require_questions(configs: Sequence[TrainConfig], workdir: Path, path: Path, questions: Questions) -> None:
    """Checks that `score_runs` can make its questions, before any run is trained for them.

    Raises:
      ConfigError: a corpus cannot be read, or does not give so many.
    """
    missing = [entry for entry, score in _entries(configs, workdir, path, questions) if score is None]
    for data, task in {(config.data, task): None for config, task, _ in missing}:
        corpus_task(task, load_corpus(data), questions.examples, questions.tasks[task])


def score_runs(configs: Sequence[TrainConfig], workdir: Path, path: Path, questions: Questions) -> list[Score]:
    """Asks the trained runs the questions whose answers are not in `path` yet, and adds a line for each.

    If all answers are there, neither the runs nor their corpus are needed.

    Args:
      configs: the runs.
      workdir: where `run_sweep` trained them.
      path: the table, `scores.jsonl`; lines of other runs and other questions in it stay and are not returned.
      questions: for every run.

    Returns:
      A line for each run, task and number of shots, in this order.

    Raises:
      ConfigError: a run is not there, its model cannot be scored, or its corpus is another or has too few questions.
    """
    corpus_of = functools.cache(load_corpus)
    asked = functools.cache(
        lambda data, task: corpus_task(task, corpus_of(data), questions.examples, questions.tasks[task])
    )
    missing = [entry for entry, score in _entries(configs, workdir, path, questions) if score is None]
    loaded, scorer = None, None
    for config, task, shots in tqdm(missing, "Scoring", unit="task", disable=not missing):
        if config is not loaded:
            loaded = config
            scorer = scorer_of(load_run(run_directory(config, workdir)), corpus_of(config.data))
        key = dict(zip(_KEY, _key(config, workdir, task, shots, questions), strict=True))
        (row,) = score_rows(scorer, *asked(config.data, task), [shots], [0])
        append_row(path, key | {"name": config.name, "seed": config.seed} | row)
    return [score for _, score in _entries(configs, workdir, path, questions)]


def _entries(
    configs: Sequence[TrainConfig], workdir: Path, path: Path, questions: Questions
) -> list[tuple[tuple[TrainConfig, str, int], Score | None]]:
    """Lists each question to each run, with the line that `path` has of it."""
    known = {tuple(score[field] for field in _KEY): score for score in read_rows(path)}
    return [
        ((config, task, shots), known.get(_key(config, workdir, task, shots, questions)))
        for config in configs
        for task in questions.tasks
        for shots in questions.shots
    ]


def _key(config: TrainConfig, workdir: Path, task: str, shots: int, questions: Questions) -> tuple[Any, ...]:
    return run_name(config), task, shots, questions.tasks[task], questions.examples
