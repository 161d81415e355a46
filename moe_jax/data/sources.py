"""Examples by index, as grain reads them, and the random draws that complete each batch.

B batch, S sequence, N tokens of a text, T tokens of a stream.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from moe_jax.data.lengths import Lengths
from moe_jax.data.masking import draw_masks, hide_tokens
from moe_jax.data.packing import Batch, Example, example_count, pack_example
from moe_jax.data.pairs import Pair
from moe_jax.data.span_corruption import corrupt_spans, draw_spans, pair_example
from moe_jax.data.tokenization import Tokenizer


@runtime_checkable
class Examples(Protocol):
    """A sequence of examples; random draws, such as masks, are made batch by batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns the part of an example that needs no random draws."""
        ...

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """Draws arrays [count, ...] by name for a batch of `count` examples; {} if it needs none."""
        ...

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        """Returns a batch of examples with its draws applied."""
        ...


class Deterministic:
    """Examples that need no random draws."""

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        return {}

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        return batch


@dataclasses.dataclass(frozen=True)
class NextTokens(Deterministic):
    """Sequences of a stream for task `causal`: the target of a token is the next one; see `pack_example`."""

    stream: Integer[np.ndarray, "T"]
    sequence_length: int
    boundary_id: int

    def __len__(self) -> int:
        return example_count(self.stream, self.sequence_length)

    def __getitem__(self, index: int) -> Example:
        return pack_example(self.stream, index, self.sequence_length, self.boundary_id)


@dataclasses.dataclass(frozen=True)
class MaskedTokens(NextTokens):
    """Sequences of a stream for task `masked`; see `hide_tokens`. The mask is the token after the boundary."""

    mask_rate: float

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        return draw_masks((count, self.sequence_length), rng, self.mask_rate, self.boundary_id, self.boundary_id + 1)

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        return hide_tokens(batch, drawn["hidden"], drawn["shown"], self.boundary_id)


@dataclasses.dataclass(frozen=True)
class CorruptedTexts:
    """Texts of a stream for task `span_corruption`; see `corrupt_spans`.

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
class PairedTexts(Deterministic):
    """Pairs of texts for task `text_to_text`; texts that are too long are cut off.

    Attributes:
      pairs: the texts.
      tokenizer: tokenizer of both texts.
      input_length, target_length: lengths of the encoder's and the decoder's sequences, with the boundary that ends
        each.
    """

    pairs: Sequence[Pair]
    tokenizer: Tokenizer
    input_length: int
    target_length: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair, end = self.pairs[index], self.tokenizer.boundary_id
        inputs = np.append(self.tokenizer.encode(pair.inputs)[: self.input_length - 1], end)
        targets = np.append(self.tokenizer.encode(pair.targets)[: self.target_length - 1], end)
        return pair_example(inputs, targets, self.input_length, self.target_length, end)
