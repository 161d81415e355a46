"""Masked language modelling: tokens are hidden, and the model is to say what they were (Devlin et al. 2018, sec 3.1).

S sequence.
"""

import numpy as np

from moe_jax.data.packing import Example


def mask_example(example: Example, rng: np.random.Generator, rate: float, boundary_id: int, mask_id: int) -> Example:
    """Hides tokens of a packed sequence; of those hidden, 80% become the mask, 10% any token, 10% stay as they are.

    Args:
      example: as `pack_example` gives it.
      rng: of the draws.
      rate: each token's chance of being hidden; document boundaries and padding never are.
      boundary_id: the token that begins a document, above all of text.
      mask_id: the mask's.

    Returns:
      The sequence with `targets` the tokens as they were and `loss_mask` true where they were hidden.
    """
    tokens = example["tokens"]
    hidden = (rng.random(tokens.shape) < rate) & (example["segment_ids"] != 0) & (tokens != boundary_id)
    fate = rng.random(tokens.shape)
    random = rng.integers(0, boundary_id, tokens.shape, dtype=tokens.dtype)
    shown = np.where(fate < 0.8, np.array(mask_id, tokens.dtype), np.where(fate < 0.9, random, tokens))
    return example | {"tokens": np.where(hidden, shown, tokens), "targets": tokens, "loss_mask": hidden}
