"""Summaries of models over their seeds, compared with a baseline seed by seed."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from moe_jax.configuration import require_name
from moe_jax.results.curves import budget_to_reach, curve_frame, reached_at
from moe_jax.results.rows import Row, final_loss, require_comparable, step_seconds
from moe_jax.statistics.estimates import Estimate, estimate, paired_difference

COSTS = {"step": "steps", "flops": "training FLOPs", "seconds": "seconds"}
"""Costs of reaching a loss: columns of `curve_frame`, and their names in reports."""


@dataclasses.dataclass(frozen=True)
class SpeedUp:
    """The factor by which a model needs less of one cost to reach the baseline's final validation loss.

    Attributes:
      seeds: runs compared, each with the baseline's run of the same seed.
      reached: how many of them reached that loss.
      ratio: cost to the baseline over cost to the model, over the seeds; None unless every seed reached the loss.
    """

    seeds: int
    reached: int
    ratio: Estimate | None


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """One model over its seeds.

    Attributes:
      name: the model.
      experts: experts per sparse layer; 0 for a dense model.
      parameters: total.
      active_parameters: used by one token.
      flops_per_token: training FLOPs.
      seeds: of the finished runs, increasing.
      loss: final validation loss, nats per token.
      bits_per_byte: final validation loss per byte of text.
      difference: final loss minus the baseline's, paired by seed; None for the baseline or without common seeds.
      step_time: seconds per step relative to the baseline's, paired by seed; None likewise.
      speed_up: by cost, a key of COSTS; empty for the baseline or without common seeds.
      routing: each metric of the last evaluation (`moe_jax.routing.metrics`), mean over seeds; {} for a dense model.
      training: each of the same of the last training step.
    """

    name: str
    experts: int
    parameters: int
    active_parameters: int
    flops_per_token: int
    seeds: tuple[int, ...]
    loss: Estimate
    bits_per_byte: Estimate
    difference: Estimate | None
    step_time: Estimate | None
    speed_up: dict[str, SpeedUp]
    routing: dict[str, float]
    training: dict[str, float]


def summarize(rows: Sequence[Row], baseline: str) -> list[ModelSummary]:
    """Returns one summary per model, by number of experts and then name.

    Raises:
      ConfigError: the rows do not belong in one table (see `require_comparable`).
    """
    require_comparable(rows)
    by_name = group_by_name(rows)
    return [_summarize_model(group, by_name.get(baseline, [])) for group in by_name.values()]


def require_baseline(rows: Sequence[Row], baseline: str) -> None:
    """Raises ConfigError unless a row is named `baseline`."""
    require_name(baseline, sorted({row["name"] for row in rows}), "baseline")


def group_by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Collects rows by model, each model's by seed; the models by number of experts and then name."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (experts_of(row), row["name"], row["seed"])):
        groups.setdefault(row["name"], []).append(row)
    return groups


def experts_of(row: Row) -> int:
    """Returns the number of experts per sparse layer; 0 for a dense model."""
    model = row["config"]["model"]
    return model["moe"]["num_experts"] if model["moe_layers"] else 0


def cost_to_reach(row: Row, loss: float, cost: str) -> float | None:
    """Returns the cost, a key of COSTS, of reaching a validation loss; None if it was not reached.

    A run with arms reaches it where a complete run would end at `loss` (`budget_to_reach`); another where its own curve
    first does, before its learning rate has come down.
    """
    if "arms" in row:
        ends = curve_frame([*row["arms"], row]).groupby("name").last()
        return budget_to_reach(ends[cost].to_numpy(), ends["validation_loss"].to_numpy(), loss)
    frame = curve_frame([row])
    return reached_at(frame[cost].to_numpy(), frame["validation_loss"].to_numpy(), loss)


def _summarize_model(rows: Sequence[Row], baseline_rows: Sequence[Row]) -> ModelSummary:
    row = rows[0]
    baseline = {other["seed"]: other for other in baseline_rows if other["name"] != row["name"]}
    pairs = [(run, baseline[run["seed"]]) for run in rows if run["seed"] in baseline]
    return ModelSummary(
        name=row["name"],
        experts=experts_of(row),
        parameters=row["parameters"]["total"],
        active_parameters=row["parameters"]["active"],
        flops_per_token=row["flops_per_token"],
        seeds=tuple(run["seed"] for run in rows),
        loss=estimate([final_loss(run) for run in rows]),
        bits_per_byte=estimate([run["curve"][-1]["bits_per_byte"] for run in rows]),
        difference=paired_difference(*_final_losses(pairs)) if pairs else None,
        step_time=estimate([step_seconds(run) / step_seconds(other) for run, other in pairs]) if pairs else None,
        speed_up={cost: speed_up(pairs, partial(cost_to_reach, cost=cost)) for cost in COSTS} if pairs else {},
        routing=_final_metrics(rows, "routing"),
        training=_final_metrics(rows, "training"),
    )


def _final_losses(pairs: Sequence[tuple[Row, Row]]) -> tuple[list[float], list[float]]:
    return [final_loss(run) for run, _ in pairs], [final_loss(other) for _, other in pairs]


def speed_up(pairs: Sequence[tuple[Row, Row]], spent: Callable[[Row, float], float | None]) -> SpeedUp:
    """Compares the cost of the baseline's final loss to a model and to the baseline, seed by seed.

    The baseline's cost is taken where it first reached its final loss itself, so both sides follow one rule.

    Args:
      pairs: runs of the model, each with the baseline's run of the same seed; at least one.
      spent: the cost at which a run first reached a loss; None if it never did.
    """
    costs = [[spent(row, final_loss(other)) for row in (other, run)] for run, other in pairs]
    ratios = [base / own for base, own in costs if base is not None and own is not None]
    return SpeedUp(len(pairs), len(ratios), estimate(ratios) if len(ratios) == len(pairs) else None)


def _final_metrics(rows: Sequence[Row], kind: str) -> dict[str, float]:
    finals = [row["curve"][-1].get(kind, {}) for row in rows]
    return {metric: float(np.mean([final[metric] for final in finals])) for metric in finals[0]}
