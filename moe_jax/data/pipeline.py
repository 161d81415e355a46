"""The input pipeline: an endless, resumable stream of training batches and a fixed list of validation batches.

Axes: B batch, S sequence.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from moe_jax.configuration import require
from moe_jax.data import documents as docs
from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import load_corpus
from moe_jax.data.packing import Batch, Example, token_stream
from moe_jax.data.pairs import load_pairs
from moe_jax.data.tasks import Examples
from moe_jax.data.tokenization import ByteTokenizer, Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class TextData:
    """A corpus as batches; a batch is a dictionary of arrays [B, S] with the keys of an example.

    Attributes:
      corpus_name: `data.corpus` of the configuration.
      digest: see `token_digest`.
      tokenizer: the tokenizer that made the tokens.
      batch_size: B, over all processes.
      train: training examples.
      validation: validation examples.
    """

    corpus_name: str
    digest: str
    tokenizer: Tokenizer
    batch_size: int
    train: Examples
    validation: Examples

    def bytes_per_target(self, batches: Sequence[Batch]) -> float:
        """Returns the mean UTF-8 bytes of a target of `batches`: bits/byte = nats/token / (ln 2 * this)."""
        targets = np.concatenate([batch["targets"][batch["loss_mask"]] for batch in batches])
        # Sentinels come after the tokenizer's tokens and stand for no bytes, as its boundary, the last of them, does.
        known = np.minimum(targets, self.tokenizer.boundary_id)
        return float(self.tokenizer.token_bytes[known].mean(dtype=np.float64))

    def train_batches(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.DatasetIterator:
        """Yields one process's rows of every training batch, forever, in an order shuffled anew in each epoch.

        The rows of all processes together are the same global batch for any number of processes. The iterator's
        `get_state()` is a JSON-able dictionary that says which batch comes next, exact however much was read ahead;
        `set_state()` on a new iterator with the same arguments goes on from there.

        Args:
          seed: seed of the order and of the draws of a task.
          process_index: index of this process.
          process_count: number of processes that share a batch.

        Raises:
          ConfigError: the batch size is not a multiple of the number of processes.
        """
        require(
            self.batch_size % process_count == 0,
            "data.batch_size",
            self.batch_size,
            f"a multiple of the {process_count} processes",
        )
        size = self.batch_size // process_count
        rows = slice(process_index * size, (process_index + 1) * size)

        def complete(batch: Batch, rng: np.random.Generator) -> Batch:
            """Draws for the whole batch, as every process does, and completes this process's part."""
            drawn = self.train.draw(self.batch_size, rng)
            return self.train.complete(batch, {name: values[rows] for name, values in drawn.items()})

        shuffled = grain.MapDataset.source(self.train).seed(seed).shuffle().repeat()
        # Nothing is dropped from an endless stream; without drop_remainder, grain's length of batches of 1 overflows.
        batches = shuffled.batch(size, drop_remainder=True)[process_index::process_count].random_map(complete)
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def validation_batches(self, count: int | None) -> list[Batch]:
        """Returns batches of sequences at equal distances in the validation data, always the same.

        Args:
          count: number of batches; None for all whole ones, which leave out fewer sequences than a batch has.

        Raises:
          ConfigError: there are too few validation sequences.
        """
        available, few = len(self.validation) // self.batch_size, len(self.validation)
        accepted = f"at most {few}, the validation examples of {self.corpus_name}"
        require(available >= 1, "data.batch_size", self.batch_size, accepted)
        count = available if count is None else count
        require(
            1 <= count <= available,
            "eval_batches",
            count,
            f"1 to {available}; {self.corpus_name} has {len(self.validation)} validation examples",
        )
        rows, size = count * self.batch_size, self.batch_size
        examples = [self.validation[row * len(self.validation) // rows] for row in range(rows)]
        batches = [_stack(examples[first : first + size]) for first in range(0, rows, size)]
        drawn = (self.validation.draw(size, np.random.default_rng(number)) for number in range(count))
        return [self.validation.complete(batch, draws) for batch, draws in zip(batches, drawn, strict=True)]


def load_text(config: DataConfig, cache_dir: Path | None = None) -> TextData:
    """Loads the corpus, the tokenizer and the token streams of `config`; prepares and caches them if they are new.

    Args:
      config: names the corpus, the tokenizer and the task.
      cache_dir: folder of prepared data; `cache_directory()` if None.

    Raises:
      ConfigError: see `load_corpus`, `load_pairs` and `load_tokenizer`; or the corpus is too small for one batch.
    """
    load = {"text": _load_streams, "pairs": _load_pairs}[config.task.source]
    digest, tokenizer, contents = load(config, cache_dir)
    train, validation = (
        config.task.examples(contents[split], split, tokenizer, config.sequence_length) for split in docs.SPLITS
    )
    size, most = config.batch_size, len(train)
    accepted = f"at most {most}, the training examples of {config.corpus} with sequences of {config.sequence_length}"
    require(most >= size, "data.batch_size", size, accepted)
    return TextData(config.corpus, digest, tokenizer, size, train, validation)


Contents = tuple[str, Tokenizer, Mapping[docs.Split, Any]]
"""Digest, tokenizer, and what the task makes its examples of, by split."""


def _load_streams(config: DataConfig, cache_dir: Path | None) -> Contents:
    """Loads the documents of each split as one stream of tokens."""
    corpus = load_corpus(config, cache_dir)
    tokenizer = tokenizer_of(config, corpus, cache_dir)
    streams = {split: token_stream(corpus, split, tokenizer, cache_dir) for split in docs.SPLITS}
    return token_digest(corpus.digest, tokenizer), tokenizer, streams


def _load_pairs(config: DataConfig, cache_dir: Path | None) -> Contents:
    """Loads the pairs of each split."""
    found = load_pairs(config, cache_dir)
    tokenizer = tokenizer_of(config, None, cache_dir)
    return token_digest(found.digest, tokenizer), tokenizer, found.splits


def token_digest(corpus_digest: str, tokenizer: Tokenizer) -> str:
    """Returns the digest of a corpus as tokens: the corpus's own for bytes, else one of corpus and tokenizer."""
    if isinstance(tokenizer, ByteTokenizer):
        return corpus_digest
    return docs.content_digest(f"{corpus_digest} {tokenizer.digest}".encode())


def tokenizer_of(config: DataConfig, corpus: docs.Corpus | None, cache_dir: Path | None = None) -> Tokenizer:
    """Loads the tokenizer of `config`, trained on `tokenizer_corpus` if it names one, else on `corpus`."""
    if config.tokenizer_corpus is not None:
        trained_on = DataConfig(corpus=config.tokenizer_corpus, validation_fraction=config.validation_fraction)
        corpus = load_corpus(trained_on, cache_dir)
    return load_tokenizer(config.tokenizer, corpus, cache_dir)


def _stack(examples: list[Example]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
