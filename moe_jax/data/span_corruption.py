"""T5's pre-training task: spans of a text are cut out, and the model is to say them (Raffel et al. 2020, section 3.3).

Each span leaves a sentinel in its place, the target names each sentinel and says its span, and both end alike.
N tokens of a text, R sequence of the encoder, S sequence of the decoder.
"""

import numpy as np
from jaxtyping import Bool, Int, Integer

from moe_jax.data.lengths import Lengths
from moe_jax.data.packing import Example


def draw_spans(lengths: Lengths, rng: np.random.Generator) -> Bool[np.ndarray, "N"]:
    """Which tokens are hidden: spans apart from one another, of which the text begins with none and ends with one.

    All ways to cut the hidden tokens into that many spans, and those that stay into as many pieces, are as likely.
    """
    stay = _cut(lengths.text - lengths.hidden, lengths.spans, rng)
    hidden = _cut(lengths.hidden, lengths.spans, rng)
    sizes = np.stack([stay, hidden], axis=1).reshape(-1)
    return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)


def _cut(total: int, parts: int, rng: np.random.Generator) -> Int[np.ndarray, "parts"]:
    """Sizes of at least 1 of `parts` parts of a whole."""
    places = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], places, [total]]))


def corrupt_spans(
    text: Integer[np.ndarray, "N"], hidden: Bool[np.ndarray, "N"], first_sentinel: int, end: int
) -> tuple[Int[np.ndarray, " inputs"], Int[np.ndarray, " targets"]]:
    """Inputs and targets: each has what the other has not, and in its place a sentinel.

    Args:
      text: tokens.
      hidden: which are cut out; the first is not, the last is.
      first_sentinel: of the first span; the others' follow it.
      end: the token that ends both.
    """
    begins = hidden & ~np.concatenate([[False], hidden[:-1]])
    sentinels = first_sentinel + np.cumsum(begins) - 1
    inputs = np.where(begins, sentinels, text)[~hidden | begins]
    # Before each token that begins a span its sentinel, then all that are hidden.
    targets = np.stack([sentinels, text], axis=1)[np.stack([begins, hidden], axis=1)]
    return np.append(inputs, end), np.append(targets, end)


def pair_example(
    inputs: Int[np.ndarray, " inputs"],
    targets: Int[np.ndarray, " targets"],
    input_length: int,
    target_length: int,
    start: int,
) -> Example:
    """A pair of texts as an encoder-decoder's example, padded.

    Args:
      inputs: what the encoder sees.
      targets: what the decoder is to say; it sees `start` and then what it should have said.
      input_length: R.
      target_length: S.
      start: the token that the decoder begins with.

    Returns:
      int32 arrays, and a mask; `encoder_tokens`, `encoder_segment_ids` and `encoder_positions` [R], `tokens`,
      `targets`, `segment_ids`, `positions` and `loss_mask` [S], of which all padding is 0.
    """
    seen = np.concatenate([[start], targets[:-1]])
    valid = np.arange(target_length) < len(targets)
    return {
        "encoder_tokens": _padded(inputs, input_length),
        "encoder_segment_ids": _padded(np.ones_like(inputs), input_length),
        "encoder_positions": _padded(np.arange(len(inputs)), input_length),
        "tokens": _padded(seen, target_length),
        "targets": _padded(targets, target_length),
        "segment_ids": valid.astype(np.int32),
        "positions": _padded(np.arange(len(targets)), target_length),
        "loss_mask": valid,
    }


def _padded(values: Integer[np.ndarray, " values"], length: int) -> Int[np.ndarray, " length"]:
    return np.pad(values, (0, length - len(values))).astype(np.int32)
