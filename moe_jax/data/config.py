"""The data of a run: corpus, tokenizer, task, and the shape of a batch."""

import dataclasses
import re

from moe_jax.configuration import ConfigError, errors_within, require
from moe_jax.data.tasks import TASKS, AnyTask, Causal

CORPUS_FORMS = {
    "text": "python_source, python_source/installed, text_files:GLOB[,GLOB...], tfds:NAME[/CONFIG]",
    "pairs": "python_functions, json_lines:GLOB[,GLOB...]",
}
"""Names of corpora, by the `source` of a task."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text that a run trains and validates on, and the task it makes of that text.

    Attributes:
      corpus: `python_source` (the running interpreter's standard library), `python_source/installed` (with the
        installed packages), `text_files:GLOB[,GLOB...]`, or `tfds:NAME[/CONFIG]` for any prepared TFDS data set. With
        a task on pairs: `python_functions` (the code of each function of the standard library, and its name), or
        `json_lines:GLOB[,GLOB...]`, each line an object with texts `inputs` and `targets`.
      tokenizer: `bytes`, or `bpe:SIZE`, a byte-pair encoding with a vocabulary of SIZE, trained on the corpus.
      tokenizer_corpus: another corpus to train the tokenizer on; None trains it on `corpus`. Required by `bpe:SIZE`
        with a task on pairs.
      sequence_length: S, tokens per sequence of a decoder, or of the encoder of an encoder-decoder.
      batch_size: B, sequences per step over all processes.
      validation_fraction: share of the files that validate (text_files, python_source), chosen by a hash of their
        content; or share of the training split of a TFDS data set without a validation or test split.
      task: the kind of task and its options: `causal`, `masked`, `span_corruption` or `text_to_text`; see
        `moe_jax.data.tasks`.
      text_feature: the feature of a TFDS example that holds its text.
    """

    corpus: str = "python_source"
    tokenizer: str = "bytes"
    tokenizer_corpus: str | None = None
    sequence_length: int = 256
    batch_size: int = 16
    validation_fraction: float = 0.05
    task: AnyTask = dataclasses.field(default_factory=Causal)
    text_feature: str = "text"

    def __post_init__(self) -> None:
        source, with_task = self.task.source, f"with task {self.task_name!r}"
        require(_is_corpus(self.corpus, source), "corpus", self.corpus, f"{CORPUS_FORMS[source]}, {with_task}")
        trained_on, needed = self.tokenizer_corpus, source == "pairs" and self.tokenizer != "bytes"
        fits = not needed if trained_on is None else _is_corpus(trained_on, "text")
        accepted = CORPUS_FORMS["text"] + (f", {with_task}" if needed else ", or None")
        require(fits, "tokenizer_corpus", trained_on, accepted)
        shortest = self.task.shortest_sequence
        accepted = f"an integer of at least {shortest}, {with_task}"
        require(self.sequence_length >= shortest, "sequence_length", self.sequence_length, accepted)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer of at least 1")
        require(0 < self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "between 0 and 1")
        with errors_within("task"):
            self.task.check(self.sequence_length)
        if not re.fullmatch(r"bytes|bpe:[0-9]+", self.tokenizer):
            raise ConfigError(f"tokenizer is {self.tokenizer!r}; accepted: bytes, bpe:SIZE (for example bpe:2048)")
        require(
            self.text_vocab_size >= 257,
            "tokenizer",
            self.tokenizer,
            "bpe:SIZE with a SIZE of at least 257 (256 bytes and the document boundary)",
        )

    @property
    def task_name(self) -> str:
        """Name of the task's kind."""
        return TASKS.name_of(self.task)

    @property
    def tokens_per_example(self) -> int:
        """Positions in one row of a batch, encoder and decoder together."""
        return self.sequence_length + (self.task.target_length or 0)

    @property
    def vocab_size(self) -> int:
        """V: the tokenizer's vocabulary and the task's special tokens."""
        return self.text_vocab_size + self.task.special_tokens

    @property
    def text_vocab_size(self) -> int:
        """Size of the tokenizer's vocabulary: 256 bytes and the document boundary, or SIZE of `bpe:SIZE`."""
        return 257 if self.tokenizer == "bytes" else int(self.tokenizer.removeprefix("bpe:"))


def _is_corpus(name: str, source: str) -> bool:
    """Returns true for a name of one of the CORPUS_FORMS of this source."""
    if source == "pairs":
        return name == "python_functions" or re.match(r"json_lines:.+", name) is not None
    plain = name in ("python_source", "python_source/installed")
    return plain or re.match(r"(text_files|tfds):.+", name) is not None
