"""The validation loss on a fixed list of batches. E experts."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from moe_jax.training.state import TrainState
from moe_jax.training.step import Batch, Metrics


def evaluate(
    eval_step: Callable[[TrainState, Batch], Metrics],
    state: TrainState,
    batches: Iterable[Batch],
    bytes_per_target: float,
) -> dict[str, Any]:
    """Computes the mean metrics over `batches`, as Python numbers.

    Args:
      eval_step: the compiled result of `make_eval_step`.
      state: the training state.
      batches: validation batches.
      bytes_per_target: UTF-8 bytes per target token of `batches`.

    Returns:
      loss: nats per target token.
      bits_per_byte: the same loss in bits per byte of text, which does not depend on the tokenizer.
      and the mean of each routing metric, with `load` as {"layer_i": [E numbers]}.
    """
    results = jax.device_get([eval_step(state, batch) for batch in batches])
    targets = sum(float(result.pop("targets")) for result in results)
    loss = sum(float(result.pop("loss_sum")) for result in results) / targets
    routing = jax.tree.map(lambda *xs: np.mean(np.stack(xs), axis=0, dtype=np.float64).tolist(), *results)
    return {"loss": loss, "bits_per_byte": loss / math.log(2) / bytes_per_target} | routing
