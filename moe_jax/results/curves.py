"""Curves of losses over steps, tokens, FLOPs and seconds, and the point where one reaches a loss."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Real

from moe_jax.results.rows import Row


def curve_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns one line per evaluation, to plot and to group.

    Columns: name, seed, step, tokens, flops (training FLOPs spent so far), seconds (by steps timed by turns, where the
    row has them), validation_loss, bits_per_byte, and one per routing metric, NaN where a model has none.
    """
    return pd.DataFrame(
        {
            "name": row["name"],
            "seed": row["seed"],
            "step": point["step"],
            "tokens": point["tokens"],
            "flops": point["tokens"] * row["flops_per_token"],
            "seconds": point["step"] * row["step_seconds"] if "step_seconds" in row else point["seconds"],
            "validation_loss": point["validation_loss"],
            "bits_per_byte": point["bits_per_byte"],
            **point["routing"],
        }
        for row in rows
        for point in row["curve"]
    )


def budget_to_reach(
    costs: Real[np.ndarray, " runs"], losses: Float[np.ndarray, " runs"], target: float
) -> float | None:
    """Finds the cost of a complete run that ends at `target`; None if the costliest run ends above it.

    Losses of runs are interpolated linearly in the logarithm of their cost. Loss falls ever more slowly, so this errs
    towards a higher cost. If the cheapest run ends below `target`, its cost is returned, which is again too high.

    Args:
      costs: of complete runs, in any unit, in any order.
      losses: final losses of these runs.
      target: the loss to reach.
    """
    order = np.argsort(costs)
    reached = reached_at(np.log(costs[order]), losses[order], target)
    return None if reached is None else math.exp(reached)


def reached_at(x: Real[np.ndarray, " points"], losses: Float[np.ndarray, " points"], target: float) -> float | None:
    """Finds where a loss curve first reaches `target`; None if it never does.

    Args:
      x: increasing positions of the evaluations, in any unit: steps, FLOPs, seconds.
      losses: at these positions; NaN (a diverged evaluation) reaches nothing.
      target: the loss to reach.

    Returns:
      The position in the unit of `x`, by linear interpolation of the running minimum.
    """
    best = np.fmin.accumulate(losses)
    reached = np.flatnonzero(best <= target)
    if not reached.size:
        return None
    after = int(reached[0])
    if after == 0 or math.isnan(best[after - 1]):
        return float(x[after])
    share = (best[after - 1] - target) / (best[after - 1] - best[after])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))
