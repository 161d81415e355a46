"""Text to text: the model reads the first text of a pair and predicts the second."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from moe_jax.configuration import require
from moe_jax.data.documents import Split, content_digest
from moe_jax.data.packing import Example
from moe_jax.data.tasks.pair_example import pair_example
from moe_jax.data.tasks.task import Deterministic, Task
from moe_jax.data.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text and the text that a model is to predict from it."""

    inputs: str
    targets: str

    @property
    def digest(self) -> str:
        """SHA-256 of both texts, in hex."""
        return content_digest(json.dumps([self.inputs, self.targets]).encode())


@dataclasses.dataclass(frozen=True)
class PairedTexts(Deterministic):
    """Pairs of texts as tokens; texts that are too long are cut off.

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


@dataclasses.dataclass(frozen=True)
class TextToText(Task):
    """An encoder-decoder that predicts the second text of a pair from the first.

    Attributes:
      target_length: tokens per sequence of the decoder.
      sentinels: number of special tokens that a pre-trained model has for hidden spans; no pair holds one.
      train_examples: number of pairs to train on, the first in order of their digests; None takes all.
    """

    target_length: int
    sentinels: int = 0
    train_examples: int | None = None

    title = "Text-to-text encoder-decoder"
    source = "pairs"
    scores_answers = True

    def __post_init__(self) -> None:
        require(self.sentinels >= 0, "sentinels", self.sentinels, "an integer of at least 0")
        accepted = "an integer of at least 1, or None"
        examples = self.train_examples
        require(examples is None or examples >= 1, "train_examples", examples, accepted)

    @property
    def special_tokens(self) -> int:
        return self.sentinels

    def examples(
        self, content: Sequence[Pair], split: Split, tokenizer: Tokenizer, sequence_length: int
    ) -> PairedTexts:
        pairs = content[: self.train_examples] if split == "train" else content
        return PairedTexts(pairs, tokenizer, sequence_length, self.target_length)
