"""A study as one record: its models, how many seeds of them, and the report that it ends with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from moe_jax.configuration import require, require_name
from moe_jax.results.rows import Row, Score
from moe_jax.study.few_shot_scores import Questions


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of a study.

    Attributes:
      key: the argument of a preset's `get_config`. A run that another starts from or learns from is named in the
        configuration by its path from there: `../experts/dense` of `fine_tuning/switch` is `experts/dense`.
      name: the model in tables and in `--models`.
      baseline: key of the model that it is compared with; its own if it is a baseline.
      group: models of one group are compared with each other, such as those of one size; empty if all are.
    """

    key: str
    name: str
    baseline: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A scale at which a study runs.

    Attributes:
      get_config: configurations by the key of a model.
      seeds: runs of each model, with seeds from 0.
      models: keys of the models that run; None is all of the study's.
      seeds_of: another number of seeds for some models, by key.
      arms: divisors of the steps: each model also trains with so many times fewer, in a complete schedule of its own.
        From these runs speed-ups are read.
      questions: asked of the trained models; None asks nothing.
      watts: power that is assumed where energy is not counted; None for a report without energy.
    """

    get_config: Callable[[str], ConfigDict]
    seeds: int
    models: tuple[str, ...] | None = None
    seeds_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    arms: tuple[int, ...] = ()
    questions: Questions | None = None
    watts: float | None = None


@dataclasses.dataclass(frozen=True)
class Finished:
    """The measurements of a study, from which its report is written.

    Attributes:
      groups: rows of the study's models by their group, with the costs of steps if those were timed.
      scores: answers to the preset's questions.
      router_times: milliseconds of a router alone, by `task/name`.
      energy_counter: name of the counter of energy; None without one.
      watts: power that is assumed instead.
      directory: for the report.
      command: repeats the study.
    """

    groups: Mapping[str, Sequence[Row]]
    scores: Sequence[Score]
    router_times: Mapping[str, float]
    energy_counter: str | None
    watts: float | None
    directory: Path
    command: str

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.groups.values() for row in rows]


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of models, from their configurations to a report.

    Attributes:
      name: of its folder of results.
      models: in the order in which they are trained and stand in tables.
      presets: by the name that `--preset` takes.
      report: writes the report and returns what the command prints.
      jobs: runs at a time unless `--jobs` says otherwise: 1 where the report has the seconds of whole runs; None is one
        a core.
      may_diverge: whether a run that diverges is a result; it otherwise ends the study.
      times_steps: whether training steps are timed apart from training, models by turns.
      times_routers: whether routers are timed alone, by turns.
      chooser: name of an option that takes models by name, separated by commas, with the models that they are compared
        with; None for no such option.
    """

    name: str
    models: tuple[Model, ...]
    presets: Mapping[str, Preset]
    report: Callable[[Finished], str]
    jobs: int | None = None
    may_diverge: bool = False
    times_steps: bool = False
    times_routers: bool = False
    chooser: str | None = None

    def __post_init__(self) -> None:
        keys = [model.key for model in self.models]
        require(len(set(keys)) == len(keys), "models", keys, "keys that differ from each other")
        for model in self.models:
            require_name(model.baseline, keys, f"baseline of {model.key}")

    def chosen(self, preset: Preset, names: Sequence[str]) -> list[Model]:
        """Returns the study's models with one of these names; all of the preset's if no name is given.

        Raises:
          ConfigError: the model that others are compared with is not among them.
        """
        if not names:
            return [model for model in self.models if preset.models is None or model.key in preset.models]
        by_key = {model.key: model for model in self.models}
        chosen = [model for model in self.models if model.name in names]
        for model in chosen or self.models:
            baseline = by_key[model.baseline]
            accepted = f"{baseline.name}, that others are compared with, among them"
            require(baseline in chosen, "--models", " ".join(names), accepted)
        return chosen

    def with_baselines(self, names: Sequence[str], option: str) -> list[str]:
        """Returns these names and those of the models that they are compared with, in the study's order.

        Raises:
          ConfigError: no model has that name.
        """
        for name in names:
            require_name(name, sorted({model.name for model in self.models}), option)
        baselines = {model.baseline for model in self.models if model.name in names}
        kept = [model.name for model in self.models if model.name in names or model.key in baselines]
        return list(dict.fromkeys(kept))
