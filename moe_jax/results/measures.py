"""Measures of finished runs: a metric by name, its differences seed by seed, and divergence."""

import math
from collections.abc import Mapping, Sequence

from moe_jax.configuration import require_name
from moe_jax.results.rows import Row, final_loss

# Each model's rows, those at one index of one seed.
Runs = Mapping[str, Sequence[Row]]


def diverged(row: Row) -> bool:
    """Says whether a run ended without a finite loss."""
    return bool(row.get("diverged", False)) or not row["curve"] or not math.isfinite(final_loss(row))


def value_of(row: Row, metric: str) -> float:
    """Returns a metric of a run after its last evaluation.

    Args:
      row: the run.
      metric: `loss` (nats per token), `routing.NAME`, or the name of a score.

    Raises:
      ConfigError: the row has no such metric.
    """
    routing = {f"routing.{name}": value for name, value in row["curve"][-1]["routing"].items()}
    known = {"loss": final_loss(row), **row.get("scores", {}), **routing}
    require_name(metric, known, f"metric of {row['name']}")
    return float(known[metric])


def values_of(runs: Runs, model: str, metric: str) -> list[float]:
    """Returns the metric of each run of a model."""
    return [value_of(row, metric) for row in runs[model]]


def differences(runs: Runs, model: str, baseline: str, metric: str) -> list[float]:
    """Returns the metric of each run of `model` minus that of baseline's run of the same seed."""
    pairs = zip(values_of(runs, model, metric), values_of(runs, baseline, metric), strict=True)
    return [value - other for value, other in pairs]
