"""The task of a run: what a model learns from a corpus.

B batch, S sequence.
"""

from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from moe_jax.configuration import require
from moe_jax.data.documents import Split
from moe_jax.data.packing import Batch, Example
from moe_jax.data.tokenization import Tokenizer


@runtime_checkable
class Examples(Protocol):
    """A sequence of examples, as grain reads them; random draws, such as masks, are made batch by batch."""

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


class Task:
    """A kind of task: a frozen dataclass of its options, which makes examples of a split.

    Attributes:
      title: heading of the task's models in a report.
      source: what the examples are made of: `text`, the documents of a corpus as one stream of tokens, or `pairs` of
        texts.
      causal: true if the decoder sees only the tokens before the one that it predicts.
      target_length: tokens per sequence of the decoder of an encoder-decoder; None for a decoder alone.
      special_tokens: number of tokens after the tokenizer's, such as a mask or sentinels.
      shortest_sequence: smallest `data.sequence_length`.
      scores_answers: true if an evaluation also says how many targets are predicted whole.
    """

    title: ClassVar[str]
    source: ClassVar[Literal["text", "pairs"]] = "text"
    causal: ClassVar[bool] = True
    target_length: int | None
    special_tokens: int = 0
    shortest_sequence: ClassVar[int] = 1
    scores_answers: ClassVar[bool] = False

    def check(self, sequence_length: int) -> None:
        """Raises ConfigError, naming a field of this task, if the task does not fit sequences of this length."""
        if self.target_length is not None:
            require(self.target_length >= 1, "target_length", self.target_length, "an integer of at least 1")

    def examples(self, content: Any, split: Split, tokenizer: Tokenizer, sequence_length: int) -> Examples:
        """Makes the examples of a split.

        Args:
          content: [T] tokens of the split, each document after a boundary, if `source` is `text`; else its pairs.
          split: `train` or `validation`.
          tokenizer: the tokenizer of the run.
          sequence_length: S, or R of an encoder-decoder.
        """
        raise NotImplementedError
