"""From a configuration to batches: an endless, resumable stream to train on and a fixed list to validate on.

Axes: B batch, S sequence, T tokens of a stream.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Integer, Shaped

from moe_jax.configuration import require
from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import load_corpus
from moe_jax.data.masking import mask_example
from moe_jax.data.packing import Example, example_count, pack_example, token_stream
from moe_jax.data.tokenization import Tokenizer, load_tokenizer

Batch = dict[str, Shaped[np.ndarray, "B S"]]


@dataclasses.dataclass(frozen=True)
class PackedExamples:
    """The sequences of a stream, as grain's random-access source: see `pack_example`."""

    stream: Integer[np.ndarray, "T"]
    sequence_length: int
    boundary_id: int

    def __len__(self) -> int:
        return example_count(self.stream, self.sequence_length)

    def __getitem__(self, index: int) -> Example:
        return pack_example(self.stream, index, self.sequence_length, self.boundary_id)


@dataclasses.dataclass(frozen=True)
class TextData:
    """A corpus as batches of packed sequences; a batch is a dictionary of arrays [B, S] with `pack_example`'s keys.

    Attributes:
      corpus_name: as the configuration has it.
      digest: the corpus's.
      tokenizer: what made the tokens.
      batch_size: B, over all processes.
      train: the training sequences.
      validation: the validation sequences.
      mask_rate: share of the tokens that are hidden, their mask being the token after the tokenizer's; None where the
        task is to say what comes next.
    """

    corpus_name: str
    digest: str
    tokenizer: Tokenizer
    batch_size: int
    train: PackedExamples
    validation: PackedExamples
    mask_rate: float | None

    @property
    def vocab_size(self) -> int:
        """V, with the document boundary, and the mask where there is one."""
        return self.tokenizer.vocab_size + (self.mask_rate is not None)

    @property
    def tokens(self) -> dict[str, int]:
        """T of each split, with the document boundaries."""
        return {"train": len(self.train.stream), "validation": len(self.validation.stream)}

    def bytes_per_target(self, batches: Sequence[Batch]) -> float:
        """UTF-8 bytes for each target that `batches` score: bits/byte = nats/token / (ln 2 * this)."""
        targets = np.concatenate([batch["targets"][batch["loss_mask"]] for batch in batches])
        return float(self.tokenizer.token_bytes[targets].mean(dtype=np.float64))

    def train_batches(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.DatasetIterator:
        """Shuffles the training sequences, anew in each epoch, and gives one process its rows of every batch, forever.

        The rows of all processes, in the order of the processes, are the same global batch for any number of them.
        The iterator's `get_state()` is a JSON-able dictionary that says which batch comes next, and is exact whatever
        was read ahead; `set_state()` on a new iterator with the same arguments goes on from there.

        Args:
          seed: of the order.
          process_index: which process this is.
          process_count: how many processes share a batch.

        Raises:
          ConfigError: the processes cannot share a batch evenly.
        """
        require(
            self.batch_size % process_count == 0,
            "data.batch_size",
            self.batch_size,
            f"a multiple of the {process_count} processes",
        )
        shuffled = grain.MapDataset.source(self.train).seed(seed).shuffle().repeat().random_map(self._task)
        # Nothing is dropped from an endless stream; without drop_remainder, grain's length of batches of 1 overflows.
        batches = shuffled.batch(self.batch_size // process_count, drop_remainder=True)
        rows = batches[process_index::process_count]
        return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def validation_batches(self, count: int) -> list[Batch]:
        """The same `count` batches each time, of different sequences spread evenly over the validation stream.

        Raises:
          ConfigError: the stream is too short for so many batches.
        """
        available = len(self.validation) // self.batch_size
        require(
            1 <= count <= available,
            "eval_batches",
            count,
            f"1 to {available}, as {self.corpus_name} has {len(self.validation)} sequences to validate on",
        )
        rows = count * self.batch_size
        places = [row * len(self.validation) // rows for row in range(rows)]
        examples = [self._task(self.validation[place], np.random.default_rng(place)) for place in places]
        return [_stack(examples[first : first + self.batch_size]) for first in range(0, rows, self.batch_size)]

    def _task(self, example: Example, rng: np.random.Generator) -> Example:
        """What a model is to do with a sequence."""
        if self.mask_rate is None:
            return example
        return mask_example(example, rng, self.mask_rate, self.tokenizer.boundary_id, self.tokenizer.vocab_size)


def load_text(config: DataConfig, cache_dir: Path | None = None) -> TextData:
    """Loads, or prepares and keeps, the corpus, the tokenizer and the token streams that `config` asks for.

    Args:
      config: what to read.
      cache_dir: where what was prepared is kept; `cache_directory()` if None.

    Raises:
      ConfigError: see `load_corpus` and `load_tokenizer`; or the corpus is too small for one batch.
    """
    corpus = load_corpus(config, cache_dir)
    tokenizer = load_tokenizer(config.tokenizer, corpus, cache_dir)
    train, validation = (
        PackedExamples(token_stream(corpus, split, tokenizer, cache_dir), config.sequence_length, tokenizer.boundary_id)
        for split in ("train", "validation")
    )
    require(
        len(train) >= config.batch_size,
        "data.batch_size",
        config.batch_size,
        f"at most {len(train)}, the training sequences of {config.sequence_length} tokens that {corpus.name} has",
    )
    mask_rate = config.mask_rate if config.task == "masked" else None
    return TextData(corpus.name, corpus.digest, tokenizer, config.batch_size, train, validation, mask_rate)


def _stack(examples: list[Example]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
