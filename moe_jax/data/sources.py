"""Examples by their number, as grain reads them, and what of a batch is drawn anew each time it is seen.

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
    """What a model is to learn or to be tested on."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """What is always the same of an example."""
        ...

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """What is drawn for a batch of `count` examples: arrays [count, ...] by name, none where nothing is."""
        ...

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        """A batch of examples with what was drawn for them."""
        ...


class Fixed:
    """Of which nothing is drawn."""

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        return {}

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        return batch


@dataclasses.dataclass(frozen=True)
class NextTokens(Fixed):
    """The sequences of a stream, each token with the next as its target: see `pack_example`."""

    stream: Integer[np.ndarray, "T"]
    sequence_length: int
    boundary_id: int

    def __len__(self) -> int:
        return example_count(self.stream, self.sequence_length)

    def __getitem__(self, index: int) -> Example:
        return pack_example(self.stream, index, self.sequence_length, self.boundary_id)


@dataclasses.dataclass(frozen=True)
class MaskedTokens(NextTokens):
    """The same sequences with tokens to find: see `mask_example`; the mask is the token after the boundary."""

    mask_rate: float

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        return draw_masks((count, self.sequence_length), rng, self.mask_rate, self.boundary_id, self.boundary_id + 1)

    def complete(self, batch: Batch, drawn: Batch) -> Batch:
        return hide_tokens(batch, drawn["hidden"], drawn["shown"], self.boundary_id)


@dataclasses.dataclass(frozen=True)
class CorruptedTexts:
    """Texts of a stream with spans to say: see `corrupt_spans`. As in T5, one may hold parts of several documents.

    Attributes:
      stream: tokens.
      lengths: of a text and its parts.
      input_length, target_length: of the encoder's and the decoder's sequences.
      boundary_id: what begins the decoder's text and ends both; sentinels are the tokens after it.
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
class PairedTexts(Fixed):
    """Pairs of texts, what of them is too long cut off.

    Attributes:
      pairs: the texts.
      tokenizer: of both.
      input_length, target_length: of the encoder's and the decoder's sequences, with the boundary that ends each.
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
