"""Causal language modelling: the model predicts the next token of a stream.

T tokens of the stream.
"""

import dataclasses

import numpy as np
from jaxtyping import Integer

from moe_jax.data.documents import Split
from moe_jax.data.packing import Example, example_count, pack_example
from moe_jax.data.tasks.task import Deterministic, Task
from moe_jax.data.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class NextTokens(Deterministic):
    """Sequences of a stream; the target of a token is the next one. See `pack_example`."""

    stream: Integer[np.ndarray, "T"]
    sequence_length: int
    boundary_id: int

    def __len__(self) -> int:
        return example_count(self.stream, self.sequence_length)

    def __getitem__(self, index: int) -> Example:
        return pack_example(self.stream, index, self.sequence_length, self.boundary_id)


@dataclasses.dataclass(frozen=True)
class Causal(Task):
    """A decoder that predicts the next token from those before it."""

    title = "Causal decoder"
    target_length = None

    def examples(
        self, content: Integer[np.ndarray, "T"], split: Split, tokenizer: Tokenizer, sequence_length: int
    ) -> NextTokens:
        return NextTokens(content, sequence_length, tokenizer.boundary_id)
