"""The data of a run: corpus, tokenizer, task, and the shape of a batch."""

import dataclasses
import re
from typing import Literal

from moe_jax.configuration import ConfigError, require
from moe_jax.data.lengths import Lengths, longest_text

CORPUS_FORMS = "python_source, python_source/installed, text_files:GLOB[,GLOB...], tfds:NAME[/CONFIG]"
PAIR_FORMS = "python_functions, json_lines:GLOB[,GLOB...]"

Task = Literal["causal", "masked", "span_corruption", "text_to_text"]
PAIRED: tuple[Task, ...] = ("span_corruption", "text_to_text")
"""Tasks of an encoder-decoder."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text that a run trains and validates on, and the task it makes of that text.

    Attributes:
      corpus: `python_source` (the running interpreter's standard library), `python_source/installed` (with the
        installed packages), `text_files:GLOB[,GLOB...]`, or `tfds:NAME[/CONFIG]` for any prepared TFDS data set. With
        task `text_to_text`: `python_functions` (the code of each function of the standard library, and its name), or
        `json_lines:GLOB[,GLOB...]`, each line an object with texts `inputs` and `targets`.
      tokenizer: `bytes`, or `bpe:SIZE`, a byte-pair encoding with a vocabulary of SIZE, trained on the corpus.
      tokenizer_corpus: another corpus to train the tokenizer on; None trains it on `corpus`. Required by `bpe:SIZE`
        with task `text_to_text`.
      sequence_length: S, tokens per sequence of a decoder, or of the encoder of an encoder-decoder.
      target_length: tokens per sequence of the decoder of an encoder-decoder; None with tasks `causal` and `masked`.
      batch_size: B, sequences per step over all processes.
      validation_fraction: share of the files that validate (text_files, python_source), chosen by a hash of their
        content; or share of the training split of a TFDS data set without a validation or test split.
      task: `causal` predicts the next token; `masked` predicts masked tokens, with a model that sees both sides. For an
        encoder-decoder: `span_corruption` predicts hidden spans; `text_to_text` predicts the target of each pair.
      mask_rate: share of the tokens that `masked` and `span_corruption` hide.
      mean_span: mean length of a hidden span, in tokens.
      sentinels: number of tokens that stand for hidden spans; they follow the tokenizer's. 0 with tasks `causal` and
        `masked`.
      train_examples: number of pairs that `text_to_text` trains on, the first in order of their digests; None takes
        all.
      text_feature: the feature of a TFDS example that holds its text.
    """

    corpus: str = "python_source"
    tokenizer: str = "bytes"
    tokenizer_corpus: str | None = None
    sequence_length: int = 256
    target_length: int | None = None
    batch_size: int = 16
    validation_fraction: float = 0.05
    task: Task = "causal"
    mask_rate: float = 0.15
    mean_span: float = 3.0
    sentinels: int = 0
    train_examples: int | None = None
    text_feature: str = "text"

    def __post_init__(self) -> None:
        pairs = self.task == "text_to_text"
        known = _is_pairs(self.corpus) if pairs else _is_text(self.corpus)
        require(known, "corpus", self.corpus, f"{PAIR_FORMS}, with task 'text_to_text'" if pairs else CORPUS_FORMS)
        trained_on = self.tokenizer_corpus
        accepted = CORPUS_FORMS if pairs else f"{CORPUS_FORMS}, or None"
        fits = _is_text(trained_on) if trained_on is not None else not pairs or self.tokenizer == "bytes"
        require(fits, "tokenizer_corpus", trained_on, accepted)
        require(self.sequence_length >= 1, "sequence_length", self.sequence_length, "an integer of at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer of at least 1")
        require(0 < self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "between 0 and 1")
        require(0 < self.mask_rate < 1, "mask_rate", self.mask_rate, "between 0 and 1")
        require(self.mean_span >= 1, "mean_span", self.mean_span, "a number of at least 1")
        examples = self.train_examples
        if pairs:
            accepted = "an integer of at least 1, or None"
            require(examples is None or examples >= 1, "train_examples", examples, accepted)
        else:
            require(examples is None, "train_examples", examples, f"None with task {self.task!r}; it takes all")
        self._check_pairs()
        if not re.fullmatch(r"bytes|bpe:[0-9]+", self.tokenizer):
            raise ConfigError(f"tokenizer is {self.tokenizer!r}; accepted: bytes, bpe:SIZE (for example bpe:2048)")
        require(
            self.text_vocab_size >= 257,
            "tokenizer",
            self.tokenizer,
            "bpe:SIZE with a SIZE of at least 257 (256 bytes and the document boundary)",
        )

    def _check_pairs(self) -> None:
        if self.task not in PAIRED:
            for name, value, none in (("target_length", self.target_length, None), ("sentinels", self.sentinels, 0)):
                require(value == none, f"{name}", value, f"{none} with the decoder-only task {self.task!r}")
            return
        accepted = "an integer of at least 1"
        target = self.target_length
        require(target is not None and target >= 1, "target_length", target, f"{accepted} with task {self.task!r}")
        require(self.sentinels >= 0, "sentinels", self.sentinels, "an integer of at least 0")
        if self.task == "span_corruption":
            require(self.sequence_length >= 4, "sequence_length", self.sequence_length, "an integer of at least 4")
            lengths = self.corrupted
            require(target >= lengths.targets, "target_length", target, f"at least {lengths.targets}, a text's targets")
            accepted = f"at least {lengths.spans}, one for each hidden span of a text"
            require(self.sentinels >= lengths.spans, "sentinels", self.sentinels, accepted)

    @property
    def corrupted(self) -> Lengths:
        """Lengths of the texts of `span_corruption`, the longest that fit `sequence_length`."""
        return longest_text(self.sequence_length, self.mask_rate, self.mean_span)

    @property
    def tokens_per_example(self) -> int:
        """Positions in one row of a batch, encoder and decoder together."""
        return self.sequence_length + (self.target_length or 0)

    @property
    def vocab_size(self) -> int:
        """V: the tokenizer's vocabulary, and the task's mask or sentinels."""
        return self.text_vocab_size + (self.task == "masked") + self.sentinels

    @property
    def text_vocab_size(self) -> int:
        """Size of the tokenizer's vocabulary: 256 bytes and the document boundary, or SIZE of `bpe:SIZE`."""
        return 257 if self.tokenizer == "bytes" else int(self.tokenizer.removeprefix("bpe:"))


def _is_text(corpus: str) -> bool:
    """Returns true for a name of one of CORPUS_FORMS."""
    plain = corpus in ("python_source", "python_source/installed")
    return plain or re.match(r"(text_files|tfds):.+", corpus) is not None


def _is_pairs(corpus: str) -> bool:
    """Returns true for a name of one of PAIR_FORMS."""
    return corpus == "python_functions" or re.match(r"json_lines:.+", corpus) is not None
