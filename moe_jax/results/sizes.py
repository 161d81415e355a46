"""Models of several sizes, the sparse ones of each compared with its dense one, and the energy that training takes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from moe_jax.configuration import require
from moe_jax.results.rows import Row, step_seconds
from moe_jax.results.summary import ModelSummary, SpeedUp, cost_to_reach, experts_of, speed_up, summarize


@dataclasses.dataclass(frozen=True)
class Size:
    """The models of one size.

    Attributes:
      label: its name.
      rows: of all of them.
      summaries: the dense model's, then the sparse ones' by number of experts, each compared with the dense one.
    """

    label: str
    rows: tuple[Row, ...]
    summaries: tuple[ModelSummary, ...]

    @property
    def dense(self) -> ModelSummary:
        return self.summaries[0]

    @property
    def sparse(self) -> tuple[ModelSummary, ...]:
        return self.summaries[1:]


def by_size(groups: Mapping[str, Sequence[Row]]) -> list[Size]:
    """Returns the sizes, the smallest first.

    Args:
      groups: the rows of each size, by its label.

    Raises:
      ConfigError: a size has no dense model or several, or its rows do not belong in one table.
    """
    sizes = []
    for label, group in groups.items():
        dense = sorted({row["name"] for row in group if not experts_of(row)})
        names = ", ".join(sorted({row["name"] for row in group}))
        require(len(dense) == 1, "dense models", dense, f"one among {names}, which are of one size")
        sizes.append(Size(label, tuple(group), tuple(summarize(group, dense[0]))))
    return sorted(sizes, key=lambda size: size.dense.flops_per_token)


class Meter(NamedTuple):
    """A measure of the energy of a training step.

    Attributes:
      name: for readers: the power that is assumed, or the counter.
      joules: of one step of a run's model.
    """

    name: str
    joules: Callable[[Row], float]


def meters(rows: Sequence[Row], watts: float, counter: str | None) -> list[Meter]:
    """Returns the ways to state energy: an assumed power times seconds, and the machine's count if every row has one.

    Args:
      rows: of the study.
      watts: the power that is assumed.
      counter: name of the machine's counter; None where it has none.

    Raises:
      ConfigError: `watts` is not positive.
    """
    require(watts > 0, "watts", watts, "a positive number")
    found = [Meter(f"{watts:g} W assumed", lambda row: watts * step_seconds(row))]
    if counter is not None and all(row.get("step_joules") is not None for row in rows):
        found.append(Meter(counter, lambda row: row["step_joules"]))
    return found


def energy_of_training(rows: Sequence[Row], meter: Meter) -> float:
    """Returns the joules of a whole run, mean over the rows of one model."""
    return sum(meter.joules(row) * row["curve"][-1]["step"] for row in rows) / len(rows)


def energy_speed_up(size: Size, name: str, meter: Meter) -> SpeedUp | None:
    """Returns the dense model's energy to its final loss over a sparse one's; None without common seeds."""

    def spent(row: Row, loss: float) -> float | None:
        steps = cost_to_reach(row, loss, "step")
        return None if steps is None else steps * meter.joules(row)

    dense = {row["seed"]: row for row in size.rows if row["name"] == size.dense.name}
    pairs = [(row, dense[row["seed"]]) for row in size.rows if row["name"] == name and row["seed"] in dense]
    return speed_up(pairs, spent) if pairs else None
