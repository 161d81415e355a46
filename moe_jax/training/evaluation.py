"""The validation loss, on batches that never change. E experts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from moe_jax.training.state import TrainState
from moe_jax.training.step import Batch, Metrics


def evaluate(
    eval_step: Callable[[TrainState, Batch], Metrics],
    state: TrainState,
    batches: Sequence[Batch],
    bytes_per_target: float,
) -> dict[str, Any]:
    """Mean over `batches`, in Python's numbers.

    Args:
      eval_step: of `make_eval_step`, compiled.
      state: the training state.
      batches: what to score.
      bytes_per_target: UTF-8 bytes per target token of `batches`.

    Returns:
      loss: nats per target token.
      bits_per_byte: the same, independent of the tokenizer.
      and each routing metric's mean over the batches, `load` as {"layer_i": [E numbers]}.
    """
    results = jax.device_get([eval_step(state, batch) for batch in batches])
    targets = sum(float(result.pop("targets")) for result in results)
    loss = sum(float(result.pop("loss_sum")) for result in results) / targets
    routing = jax.tree.map(lambda *xs: np.mean(np.stack(xs), axis=0, dtype=np.float64).tolist(), *results)
    return {"loss": loss, "bits_per_byte": loss / math.log(2) / bytes_per_target} | routing
