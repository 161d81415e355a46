"""Examples of an encoder-decoder: a padded pair of texts.

B batch, R sequence of the encoder, S sequence of the decoder, N tokens of a text.
"""

import numpy as np
from jaxtyping import Int, Integer

from moe_jax.data.packing import Batch, Example


def pair_example(
    inputs: Int[np.ndarray, "*B inputs"],
    targets: Int[np.ndarray, "*B targets"],
    input_length: int,
    target_length: int,
    start: int,
) -> Example | Batch:
    """Makes a padded example for an encoder-decoder of a pair of texts, or a batch of pairs of equal lengths.

    Args:
      inputs: the encoder's text.
      targets: the tokens that the decoder predicts; its own input is `start` and all targets but the last.
      input_length: R.
      target_length: S.
      start: the token that the decoder begins with.

    Returns:
      int32 arrays and a bool mask, 0 at padding: `encoder_tokens`, `encoder_segment_ids` and `encoder_positions`
      [*B, R]; `tokens`, `targets`, `segment_ids`, `positions` and `loss_mask` [*B, S].
    """
    seen = np.concatenate([np.full_like(targets[..., :1], start), targets[..., :-1]], axis=-1)
    return {
        "encoder_tokens": _padded(inputs, input_length),
        "encoder_segment_ids": _padded(np.ones_like(inputs), input_length),
        "encoder_positions": _padded(_places(inputs), input_length),
        "tokens": _padded(seen, target_length),
        "targets": _padded(targets, target_length),
        "segment_ids": _padded(np.ones_like(targets), target_length),
        "positions": _padded(_places(targets), target_length),
        "loss_mask": _padded(np.ones_like(targets), target_length) == 1,
    }


def _places(values: Integer[np.ndarray, "*B N"]) -> Integer[np.ndarray, "*B N"]:
    return np.broadcast_to(np.arange(values.shape[-1]), values.shape)


def _padded(values: Integer[np.ndarray, "*B N"], length: int) -> Int[np.ndarray, "*B length"]:
    padded = np.zeros((*values.shape[:-1], length), np.int32)
    padded[..., : values.shape[-1]] = values
    return padded
