"""Masked language modelling: tokens are hidden, and the model is to say what they were (Devlin et al. 2018, sec 3.1).

B batch, S sequence.
"""

import numpy as np
from jaxtyping import Bool, Int

from moe_jax.data.packing import Batch

KEPT = -1
"""Shown in the place of a hidden token that stays as it is."""


def draw_masks(shape: tuple[int, int], rng: np.random.Generator, rate: float, boundary_id: int, mask_id: int) -> Batch:
    """Which tokens of a batch to hide, and by what: 80% by the mask, 10% by any token, 10% stay as they are.

    Args:
      shape: B, S.
      rng: of the draws.
      rate: each token's chance of being hidden.
      boundary_id: the token that begins a document, above all of text.
      mask_id: the mask's.

    Returns:
      `hidden`, bool, and `shown`, tokens or KEPT.
    """
    hidden, fate = rng.random(shape) < rate, rng.random(shape)
    random = rng.integers(0, boundary_id, shape, dtype=np.int32)
    return {"hidden": hidden, "shown": np.where(fate < 0.8, np.int32(mask_id), np.where(fate < 0.9, random, KEPT))}


def hide_tokens(
    batch: Batch, hidden: Bool[np.ndarray, "B S"], shown: Int[np.ndarray, "B S"], boundary_id: int
) -> Batch:
    """Hides tokens of packed sequences; document boundaries and padding never are hidden.

    Args:
      batch: of examples as `pack_example` gives them.
      hidden, shown: see `draw_masks`.
      boundary_id: the token that begins a document.

    Returns:
      The sequences with `targets` the tokens as they were and `loss_mask` true where they were hidden.
    """
    tokens = batch["tokens"]
    hidden = hidden & (batch["segment_ids"] != 0) & (tokens != boundary_id)
    changed = hidden & (shown != KEPT)
    return batch | {"tokens": np.where(changed, shown, tokens), "targets": tokens, "loss_mask": hidden}
