"""Masked language modelling: the model predicts hidden tokens (Devlin et al. 2018, section 3.1).

B batch, S sequence.
"""

import numpy as np
from jaxtyping import Bool, Int

from moe_jax.data.packing import Batch

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
