"""The base of rules: a rule decides a claim from rows of results by one statistical test.

A rule is written before its study runs. Every rule compares runs of one seed with each other, calls nothing supported
from a single seed, and gives no figure if a run diverged, unless it counts divergence.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from moe_jax.claims.verdicts import Outcome, Verdict
from moe_jax.configuration import require
from moe_jax.results.measures import Runs, diverged
from moe_jax.results.rows import Row

Side = Literal["below", "above"]
Better = Literal["lower", "higher"]
ALPHA = 0.05
"""Level of tests that compare p values; intervals are of 1 - ALPHA."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """A rule of a claim; its fields are those under `[rule]` in the claim's file.

    Attributes:
      test: name of the statistical test.
      counts_divergence: true for a rule about runs that diverge.
    """

    test: ClassVar[str]
    counts_divergence: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def models(self) -> tuple[str, ...]:
        """The names of the models whose runs the rule reads."""

    @abc.abstractmethod
    def judge(self, runs: Runs) -> Verdict:
        """Judges runs of at least one seed, none of which diverged unless the rule counts divergence."""

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """Judges a study's rows: those of the rule's models, with the seeds that all of these have.

        Raises:
          ConfigError: the rows lack the metric.
        """
        runs = {name: {row["seed"]: row for row in rows if row["name"] == name} for name in self.models}
        missing = [name for name, by_seed in runs.items() if not by_seed]
        if missing:
            return Verdict(Outcome.NOT_RUN, reason=f"no runs of {', '.join(missing)}")
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
        if not seeds:
            return Verdict(Outcome.INCONCLUSIVE, reason="no seed in common")
        if not self.counts_divergence:
            lost = {name: sum(map(diverged, by_seed.values())) for name, by_seed in runs.items()}
            counts = [f"{count} of {len(runs[name])} runs of {name}" for name, count in lost.items() if count]
            if counts:
                reason = f"diverged: {', '.join(counts)}"
                return Verdict(Outcome.INCONCLUSIVE, test=self.test, seeds=len(seeds), reason=reason)
        found = self.judge({name: [by_seed[seed] for seed in seeds] for name, by_seed in runs.items()})
        if len(seeds) == 1:
            return dataclasses.replace(found, outcome=Outcome.INCONCLUSIVE, reason="one seed")
        return found


def require_distinct(models: Sequence[str], field: str) -> None:
    require(len(set(models)) == len(models), field, models[-1], "models that differ from each other")


def unit(metric: str) -> str:
    return "nats" if metric == "loss" else metric
