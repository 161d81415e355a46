"""Span corruption: the model predicts spans that are cut out of a text (T5: Raffel et al. 2020, section 3.3).

A sentinel stands in the place of each span. The target is each sentinel followed by its span. Both end with the same
token.
B texts, N tokens of a text, R sequence of the encoder, S sequence of the decoder.
"""

import numpy as np
from jaxtyping import Bool, Int, Integer

from moe_jax.data.lengths import Lengths
from moe_jax.data.packing import Batch, Example


def draw_spans(lengths: Lengths, count: int, rng: np.random.Generator) -> Bool[np.ndarray, "B N"]:
    """Draws the hidden tokens of `count` texts: spans that do not touch; each text ends with one, none begins with one.

    All divisions of the hidden tokens into spans, and of the others into as many pieces, are equally likely.
    """
    stay = _cut(lengths.text - lengths.hidden, lengths.spans, count, rng)
    hidden = _cut(lengths.hidden, lengths.spans, count, rng)
    sizes = np.stack([stay, hidden], axis=-1).reshape(-1)
    return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes).reshape(count, lengths.text)


def _cut(total: int, parts: int, count: int, rng: np.random.Generator) -> Int[np.ndarray, "B parts"]:
    """Cuts each of `count` wholes of size `total` at random into `parts` parts of at least 1; returns their sizes."""
    places = rng.permuted(np.tile(np.arange(1, total), (count, 1)), axis=1)[:, : parts - 1]
    return np.diff(np.sort(places), prepend=0, append=total)


def corrupt_spans(
    text: Integer[np.ndarray, "B N"], hidden: Bool[np.ndarray, "B N"], first_sentinel: int, end: int
) -> tuple[Int[np.ndarray, "B inputs"], Int[np.ndarray, "B targets"]]:
    """Divides texts into inputs and targets: each has the tokens that the other lacks, and sentinels in their place.

    Args:
      text: tokens.
      hidden: true at tokens to cut out, equally many in equally many spans in every text; the first token of a text
        stays and the last is hidden.
      first_sentinel: sentinel of the first span; the others follow it.
      end: the token that ends both.
    """
    begins = hidden & ~np.pad(hidden[:, :-1], ((0, 0), (1, 0)))
    sentinels = first_sentinel + np.cumsum(begins, axis=1) - 1
    inputs = np.where(begins, sentinels, text)[~hidden | begins]
    # Each span: its sentinel, then its tokens.
    targets = np.stack([sentinels, text], axis=-1)[np.stack([begins, hidden], axis=-1)]
    ends = np.full((len(text), 1), end)
    return tuple(np.concatenate([part.reshape(len(text), -1), ends], axis=1) for part in (inputs, targets))


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
