"""Measures that papers print besides quality, computed for our runs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from moe_jax.claims.verdicts import NO_CERTAIN_GAIN, percent
from moe_jax.reports.tables import NOTHING, speed_up_cell, with_error, with_interval
from moe_jax.results.curves import curve_frame
from moe_jax.results.rows import Row, final_loss, step_seconds
from moe_jax.results.summary import cost_to_reach, speed_up
from moe_jax.statistics.estimates import estimate
from moe_jax.statistics.intervals import fieller_interval


@dataclasses.dataclass(frozen=True)
class Compared:
    """A model among those of its table.

    Attributes:
      name: of the model.
      baseline: the model that others are compared with.
      teacher: whose gain over the baseline the model keeps a share of; None without.
      runs: the runs of each model that did not diverge, by seed.
      value: a run's figure in the table, more being better.
    """

    name: str
    baseline: str
    teacher: str | None
    runs: Mapping[str, Mapping[int, Row]]
    value: Callable[[Row], float]

    @property
    def own(self) -> list[Row]:
        return list(self.runs[self.name].values())

    @property
    def with_baseline(self) -> list[tuple[Row, Row]]:
        """The model's runs, each with the baseline's of its seed."""
        base = self.runs[self.baseline]
        return [(row, base[seed]) for seed, row in self.runs[self.name].items() if seed in base]


class Measure(NamedTuple):
    """A column of a paper's table.

    Attributes:
      title: the column's title.
      ours: returns our cell for a model with at least one run.
      meaning: what our cell says, for the reader; empty where the title says it.
    """

    title: str
    ours: Callable[[Compared], str]
    meaning: str = ""


def examples_per_second(compared: Compared) -> str:
    """Writes the examples per second, from steps timed by turns."""
    timed = [row for row in compared.own if "step_seconds" in row]
    return f"{timed[0]['config']['data']['batch_size'] / step_seconds(timed[0]):,.0f}" if timed else NOTHING


def speed_up_in(cost: str) -> Callable[[Compared], str]:
    """Returns the measure of the baseline's cost of its final loss over the model's; `cost` is a key of COSTS."""

    def ours(compared: Compared) -> str:
        if compared.name == compared.baseline or not compared.with_baseline:
            return NOTHING
        found = speed_up(compared.with_baseline, functools.partial(cost_to_reach, cost=cost))
        return speed_up_cell(found, with_interval)

    return ours


def seconds_to_baseline(compared: Compared) -> str:
    """Writes the seconds of training to the baseline's final loss, or how many seeds reach it if not all do."""
    found = [cost_to_reach(own, final_loss(base), "seconds") for own, base in compared.with_baseline]
    reached = [seconds for seconds in found if seconds is not None]
    if reached and len(reached) == len(found):
        return with_error(estimate(reached), ".0f")
    return f"{len(reached)} of {len(found)} seeds" if reached else "not reached"


def loss_at_equal_time(compared: Compared) -> str:
    """Writes the negative log perplexity after as many seconds as the quickest model's whole run took."""
    if any("step_seconds" not in row for row in _all(compared)):
        return NOTHING
    end = min(step_seconds(row) * row["curve"][-1]["step"] for row in _all(compared))
    frames = [curve_frame([row]) for row in compared.own]
    return with_error(estimate([-float(np.interp(end, f["seconds"], f["validation_loss"])) for f in frames]), ".4f")


def standard_deviation(compared: Compared) -> str:
    """Writes the standard deviation of the model's figure over seeds."""
    values = [compared.value(row) for row in compared.own]
    return f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else NOTHING


def share_of_gain(compared: Compared) -> str:
    """Writes the model's gain over the baseline as a share of the teacher's, with Fieller's interval."""
    if compared.teacher is None:
        return NOTHING
    teacher = compared.runs[compared.teacher]
    trios = [(own, base, teacher[own["seed"]]) for own, base in compared.with_baseline if own["seed"] in teacher]
    if not trios:
        return NOTHING
    values = np.array([[compared.value(row) for row in trio] for trio in trios])
    parts, wholes = values[:, 0] - values[:, 1], values[:, 2] - values[:, 1]
    if wholes.mean() <= 0:
        return "the teacher gains nothing"
    share = float(parts.mean() / wholes.mean())
    if len(trios) == 1:
        return percent(share, None)
    interval = fieller_interval(parts.tolist(), wholes.tolist())
    return NO_CERTAIN_GAIN if interval is None else percent(share, interval)


def parameters(compared: Compared) -> str:
    """Writes the number of all parameters."""
    return f"{compared.own[0]['parameters']['total']:,}"


def compression(compared: Compared) -> str:
    """Writes the share of the teacher's parameters that the model does without."""
    if compared.teacher is None or not compared.runs[compared.teacher]:
        return NOTHING
    teacher = next(iter(compared.runs[compared.teacher].values()))
    return f"{1 - compared.own[0]['parameters']['total'] / teacher['parameters']['total']:.0%}"


REACHED = "where not all seeds reach it, how many do"
SPEED_UP = f"the baseline's {{}} to its final loss, over the model's to that loss, paired by seed; {REACHED}"
MEASURES = {
    "examples_per_second": Measure("examples/s", examples_per_second, "sequences per second of training"),
    "step_speed_up": Measure("speed-up in steps", speed_up_in("step"), SPEED_UP.format("steps")),
    "seconds_speed_up": Measure("speed-up in seconds", speed_up_in("seconds"), SPEED_UP.format("seconds")),
    "seconds_to_baseline": Measure(
        "time to the baseline's final loss (ours in s)", seconds_to_baseline, f"seconds of training; {REACHED}"
    ),
    "loss_at_equal_time": Measure(
        "negative log perplexity at equal time", loss_at_equal_time, "when the quickest model's training ends"
    ),
    "standard_deviation": Measure("standard deviation", standard_deviation, "of our figure over seeds"),
    "share_of_gain": Measure(
        "share of the teacher's gain", share_of_gain, "the model's gain over the baseline, divided by its teacher's"
    ),
    "parameters": Measure("parameters", parameters),
    "compression": Measure("compression", compression, "the share of the teacher's parameters that the model lacks"),
}


def _all(compared: Compared) -> list[Row]:
    return [row for runs in compared.runs.values() for row in runs.values()]
