"""Span corruption: the model predicts spans that are cut out of a text (T5: Raffel et al. 2020, section 3.3).

A sentinel stands in the place of each span. The target is each sentinel followed by its span. Both end with the same
token.
B texts, N tokens of a text, T tokens of the stream.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from moe_jax.configuration import require
from moe_jax.data.documents import Split
from moe_jax.data.packing import Batch, Example
from moe_jax.data.tasks.pair_example import pair_example
from moe_jax.data.tasks.task import Task
from moe_jax.data.tokenization import Tokenizer


class Lengths(NamedTuple):
    """Lengths of the parts of a corrupted text, the same for every text of N tokens.

    Attributes:
      text: N.
      hidden: number of tokens in hidden spans.
      spans: number of hidden spans, and of sentinels.
    """

    text: int
    hidden: int
    spans: int

    @property
    def inputs(self) -> int:
        """Length of the encoder's text: the tokens that stay, a sentinel for each span, and the end."""
        return self.text - self.hidden + self.spans + 1

    @property
    def targets(self) -> int:
        """Length of the decoder's text: the spans, a sentinel before each, and the end."""
        return self.hidden + self.spans + 1


def corrupted_lengths(text: int, rate: float, mean_span: float) -> Lengths:
    """Returns the lengths for a text of at least two tokens; at least one is hidden and at least one stays."""
    hidden = min(max(round(text * rate), 1), text - 1)
    spans = min(max(round(hidden / mean_span), 1), text - hidden)
    return Lengths(text, hidden, spans)


def longest_text(inputs: int, rate: float, mean_span: float) -> Lengths:
    """Returns the lengths for the longest text whose corrupted form has at most `inputs` (at least 4) tokens."""
    text = 2
    while corrupted_lengths(text + 1, rate, mean_span).inputs <= inputs:
        text += 1
    return corrupted_lengths(text, rate, mean_span)


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


@dataclasses.dataclass(frozen=True)
class CorruptedTexts:
    """Texts of a stream with hidden spans; see `corrupt_spans`.

    As in T5, a text may hold parts of several documents.

    Attributes:
      stream: tokens.
      lengths: lengths of a text and its parts.
      input_length, target_length: lengths of the encoder's and the decoder's sequences.
      boundary_id: the token that begins the decoder's text and ends both; sentinels are the tokens after it.
    """

    stream: Integer[np.ndarray, "T"]
    lengths: Lengths
    input_length: int
    target_length: int
    boundary_id: int

    def __len__(self) -> int:
        return len(self.stream) // self.lengths.text

    def __getitem__(self, index: int) -> Example:
        start = index * self.lengths.text
        return {"text": self.stream[start : start + self.lengths.text].astype(np.int32)}

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        return {"hidden": draw_spans(self.lengths, count, rng)}

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        inputs, targets = corrupt_spans(batch["text"], drawn["hidden"], self.boundary_id + 1, self.boundary_id)
        return pair_example(inputs, targets, self.input_length, self.target_length, self.boundary_id)


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Task):
    """An encoder-decoder that predicts hidden spans: the encoder reads the rest of a text, the decoder writes them.

    Texts are the longest whose rest fits `data.sequence_length`.

    Attributes:
      target_length: tokens per sequence of the decoder.
      sentinels: number of special tokens that stand for hidden spans.
      mask_rate: share of the tokens that are hidden.
      mean_span: mean length of a hidden span, in tokens.
    """

    target_length: int
    sentinels: int
    mask_rate: float = 0.15
    mean_span: float = 3.0

    title = "Span-corruption encoder-decoder"
    shortest_sequence = 4

    def __post_init__(self) -> None:
        require(0 < self.mask_rate < 1, "mask_rate", self.mask_rate, "between 0 and 1")
        require(self.mean_span >= 1, "mean_span", self.mean_span, "a number of at least 1")

    @property
    def special_tokens(self) -> int:
        return self.sentinels

    def check(self, sequence_length: int) -> None:
        lengths = self.lengths(sequence_length)
        accepted = f"at least {lengths.targets}, the targets of a text"
        require(self.target_length >= lengths.targets, "target_length", self.target_length, accepted)
        accepted = f"at least {lengths.spans}, one for each hidden span of a text"
        require(self.sentinels >= lengths.spans, "sentinels", self.sentinels, accepted)

    def lengths(self, sequence_length: int) -> Lengths:
        """Returns the lengths of the longest texts that fit sequences of the encoder of this length."""
        return longest_text(sequence_length, self.mask_rate, self.mean_span)

    def examples(
        self, content: Integer[np.ndarray, "T"], split: Split, tokenizer: Tokenizer, sequence_length: int
    ) -> CorruptedTexts:
        lengths = self.lengths(sequence_length)
        return CorruptedTexts(content, lengths, sequence_length, self.target_length, tokenizer.boundary_id)
