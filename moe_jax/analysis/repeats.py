"""The loss of a decoder on repeated text and on all other text. B batch, S sequence.

A token is a repeat if the same token, with the same next token, stands earlier in its document. There a model that
looks back and copies the next token is right (an induction head: Olsson et al. 2022, arXiv:2209.11895).
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from moe_jax.configuration import require
from moe_jax.data.pipeline import load_text
from moe_jax.data.tasks import Causal
from moe_jax.training.step import apply_model
from moe_jax.training.trained import TrainedRun


class RepeatLoss(NamedTuple):
    """A loss in two parts, in nats per target token.

    Attributes:
      repeats: mean loss of repeats.
      others: mean loss of all other tokens.
      share: share of the target tokens that are repeats.
    """

    repeats: float
    others: float
    share: float


def find_repeats(
    tokens: Int[np.ndarray, "B S"], targets: Int[np.ndarray, "B S"], segment_ids: Int[np.ndarray, "B S"]
) -> Bool[np.ndarray, "B S"]:
    """Marks each token that stands earlier in its document with the same next token."""
    same = functools.reduce(np.logical_and, (x[:, :, None] == x[:, None, :] for x in (tokens, targets, segment_ids)))
    return np.tril(same, -1).any(axis=-1)


def loss_by_repeats(run: TrainedRun) -> RepeatLoss:
    """Computes the validation loss of a trained decoder on repeats and on other tokens.

    Raises:
      ConfigError: the run's task is not `causal`, or its corpus has changed since it was trained.
    """
    config, data = run.config, load_text(run.config.data)
    causal = isinstance(config.data.task, Causal)
    require(causal, "data.task", config.data.task_name, "a run with task 'causal'")
    run.require_corpus(data.corpus_name, data.digest)

    @jax.jit
    def score(state, batch):
        return apply_model(
            config.model, state.params, state.router_state, batch, jax.random.key(0), False, targets=batch["targets"]
        )[0]

    nats, repeats = [], []
    for batch in data.validation_batches(config.eval_batches):
        counted = batch["loss_mask"]
        nats.append(np.asarray(score(run.state, batch))[counted])
        repeats.append(find_repeats(batch["tokens"], batch["targets"], batch["segment_ids"])[counted])
    loss, repeated = np.concatenate(nats), np.concatenate(repeats)
    return RepeatLoss(float(loss[repeated].mean()), float(loss[~repeated].mean()), float(repeated.mean()))
