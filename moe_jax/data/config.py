"""What a run reads: corpus, tokenizer, and the shape of a batch."""

import dataclasses
import re
from typing import Literal

from moe_jax.configuration import ConfigError, require

CORPUS_FORMS = "python_source, python_source/installed, text_files:GLOB[,GLOB...], tfds:NAME[/CONFIG]"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text a run trains and validates on.

    Attributes:
      corpus: `python_source` (the running interpreter's standard library), `python_source/installed` (with the
        installed packages), `text_files:GLOB[,GLOB...]`, or `tfds:NAME[/CONFIG]` for any prepared TFDS data set.
      tokenizer: `bytes`, or `bpe:SIZE`, trained on the corpus to a vocabulary of SIZE.
      sequence_length: S, tokens per sequence.
      batch_size: B, sequences per step over all processes.
      validation_fraction: share of the files (text_files, python_source) that validate, where files go by their hash;
        of the training split of a TFDS data set that has no other.
      task: `causal`, what comes next; or `masked`, what was hidden, for a model that sees both sides.
      mask_rate: share of the tokens that `masked` hides.
      text_feature: the feature of a TFDS example that holds its text.
    """

    corpus: str = "python_source"
    tokenizer: str = "bytes"
    sequence_length: int = 256
    batch_size: int = 16
    validation_fraction: float = 0.05
    task: Literal["causal", "masked"] = "causal"
    mask_rate: float = 0.15
    text_feature: str = "text"

    def __post_init__(self) -> None:
        known = self.corpus in ("python_source", "python_source/installed") or re.match(
            r"(text_files|tfds):.+", self.corpus
        )
        require(bool(known), "data.corpus", self.corpus, CORPUS_FORMS)
        require(self.sequence_length >= 1, "data.sequence_length", self.sequence_length, "an integer of at least 1")
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "an integer of at least 1")
        require(
            0 < self.validation_fraction < 1, "data.validation_fraction", self.validation_fraction, "between 0 and 1"
        )
        require(0 < self.mask_rate < 1, "data.mask_rate", self.mask_rate, "between 0 and 1")
        if not re.fullmatch(r"bytes|bpe:[0-9]+", self.tokenizer):
            raise ConfigError(f"data.tokenizer is {self.tokenizer!r}; accepted: bytes, bpe:SIZE (for example bpe:2048)")
        require(
            self.text_vocab_size >= 257,
            "data.tokenizer",
            self.tokenizer,
            "a SIZE of at least 257 (256 bytes, 1 boundary)",
        )

    @property
    def vocab_size(self) -> int:
        """V: the tokenizer's, and the mask where the task has one."""
        return self.text_vocab_size + (self.task == "masked")

    @property
    def text_vocab_size(self) -> int:
        """The tokenizer's: 256 bytes and the document boundary, or the size asked of the byte-pair encoding."""
        return 257 if self.tokenizer == "bytes" else int(self.tokenizer.removeprefix("bpe:"))
