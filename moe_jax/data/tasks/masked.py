"""Masked language modelling: the model predicts hidden tokens (Devlin et al. 2018, section 3.1).

B batch, S sequence, T tokens of the stream.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Integer

from moe_jax.configuration import require
from moe_jax.data.documents import Split
from moe_jax.data.packing import Batch
from moe_jax.data.tasks.causal import NextTokens
from moe_jax.data.tasks.task import Task
from moe_jax.data.tokenization import Tokenizer

KEPT = -1
"""Mark in `shown` of a hidden token that stays as it is."""


def draw_masks(shape: tuple[int, int], rng: np.random.Generator, rate: float, boundary_id: int, mask_id: int) -> Batch:
    """Draws the tokens of a batch to hide: 80% become the mask, 10% a random token, 10% stay as they are.

    Args:
      shape: B, S.
      rng: source of the draws.
      rate: probability that a token is hidden.
      boundary_id: the token that begins a document; all tokens of text are below it.
      mask_id: the mask token.

    Returns:
      `hidden` [B, S], bool, and `shown` [B, S], the token shown in its place, or KEPT.
    """
    hidden, fate = rng.random(shape) < rate, rng.random(shape)
    random = rng.integers(0, boundary_id, shape, dtype=np.int32)
    return {"hidden": hidden, "shown": np.where(fate < 0.8, np.int32(mask_id), np.where(fate < 0.9, random, KEPT))}


def hide_tokens(
    batch: Batch, hidden: Bool[np.ndarray, "B S"], shown: Int[np.ndarray, "B S"], boundary_id: int
) -> Batch:
    """Hides tokens of packed sequences, but never document boundaries or padding.

    Args:
      batch: examples of `pack_example`.
      hidden, shown: see `draw_masks`.
      boundary_id: the token that begins a document.

    Returns:
      The sequences, with the original tokens as `targets` and `loss_mask` true at hidden tokens.
    """
    tokens = batch["tokens"]
    hidden = hidden & (batch["segment_ids"] != 0) & (tokens != boundary_id)
    changed = hidden & (shown != KEPT)
    return batch | {"tokens": np.where(changed, shown, tokens), "targets": tokens, "loss_mask": hidden}


@dataclasses.dataclass(frozen=True)
class MaskedTokens(NextTokens):
    """Sequences of a stream with hidden tokens; see `hide_tokens`. The mask is the token after the boundary."""

    mask_rate: float

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        return draw_masks((count, self.sequence_length), rng, self.mask_rate, self.boundary_id, self.boundary_id + 1)

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        return hide_tokens(batch, drawn["hidden"], drawn["shown"], self.boundary_id)


@dataclasses.dataclass(frozen=True)
class Masked(Task):
    """An encoder that predicts hidden tokens from both sides; one special token is the mask.

    Attributes:
      mask_rate: share of the tokens that are hidden.
    """

    mask_rate: float = 0.15

    title = "Masked-language-model encoder"
    causal = False
    target_length = None
    special_tokens = 1

    def __post_init__(self) -> None:
        require(0 < self.mask_rate < 1, "mask_rate", self.mask_rate, "between 0 and 1")

    def examples(
        self, content: Integer[np.ndarray, "T"], split: Split, tokenizer: Tokenizer, sequence_length: int
    ) -> MaskedTokens:
        return MaskedTokens(content, sequence_length, tokenizer.boundary_id, self.mask_rate)
