"""What a decoder has from copying: its loss where the text repeats itself, and elsewhere. B batch, S sequence.

A token is a repeat where some earlier place of its text has the same token and the same one after it, so that a model
that looks back and copies what came next (an induction head: Olsson et al. 2022, arXiv:2209.11895) is right there.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from moe_jax.training.step import Batch, apply_model
from moe_jax.training.trained import TrainedRun


class RepeatLoss(NamedTuple):
    """Nats per target token.

    Attributes:
      repeats: where the text repeats itself.
      others: elsewhere.
      share: of the target tokens that are repeats.
    """

    repeats: float
    others: float
    share: float


def find_repeats(
    tokens: Int[np.ndarray, "B S"], targets: Int[np.ndarray, "B S"], segment_ids: Int[np.ndarray, "B S"]
) -> Bool[np.ndarray, "B S"]:
    """Whether the token and the one after it have stood so in the same text before."""
    same = functools.reduce(np.logical_and, (x[:, :, None] == x[:, None, :] for x in (tokens, targets, segment_ids)))
    return np.tril(same, -1).any(axis=-1)


def loss_by_repeats(run: TrainedRun, batches: Sequence[Batch]) -> RepeatLoss:
    """The loss of a trained decoder on `batches`, as `TextData.validation_batches` gives them, in two parts."""
    config = run.config.model

    @jax.jit
    def score(params, router_state, batch):
        return apply_model(config, params, router_state, batch, jax.random.key(0), False, targets=batch["targets"])[0]

    nats = np.concatenate([np.asarray(score(run.state.params, run.state.router_state, batch)) for batch in batches])
    fields = ("tokens", "targets", "segment_ids", "loss_mask")
    *texts, mask = (np.concatenate([np.asarray(batch[field]) for batch in batches]) for field in fields)
    repeats, counted = find_repeats(*texts), mask.astype(bool)
    return RepeatLoss(
        repeats=float(nats[counted & repeats].mean()),
        others=float(nats[counted & ~repeats].mean()),
        share=float(repeats[counted].mean()),
    )
