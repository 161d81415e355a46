"""Tokenizers: UTF-8 bytes, or a byte-level byte-pair encoding trained on the corpus.

Axes: T tokens, V vocabulary.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer

from moe_jax.configuration import require
from moe_jax.data.cache import cache_directory, write_cached
from moe_jax.data.documents import Corpus, content_digest

SCHEME = "v1"  # Part of the names of cached files: change it with every change of a corpus's tokens.
BPE_SAMPLE_CHARACTERS = 8_000_000


@runtime_checkable
class Tokenizer(Protocol):
    """A map from text to tokens and back. The document boundary is the last token, and no text encodes to it.

    Attributes:
      name: `data.tokenizer` of the configuration.
      digest: SHA-256 in hex of all that decides the tokens of a text.
      vocab_size: V, with the boundary.
      boundary_id: the token that precedes each document, V - 1.
      token_bytes: [V], number of UTF-8 bytes that each token stands for; 0 for the boundary.
    """

    name: str
    digest: str
    vocab_size: int
    boundary_id: int
    token_bytes: Int32[np.ndarray, "V"]

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Returns the tokens of `text`, without a boundary."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes each text."""
        ...

    def decode(self, ids: Integer[np.ndarray, "T"]) -> str:
        """Inverts `encode`; leaves out boundaries, and writes U+FFFD for bytes that are not UTF-8."""
        ...


class ByteTokenizer:
    """A tokenizer with a token for each of the 256 bytes, and the boundary."""

    name = "bytes"
    digest = content_digest(b"bytes")
    vocab_size = 257
    boundary_id = 256
    token_bytes = np.array([1] * 256 + [0], np.int32)

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Integer[np.ndarray, "T"]) -> str:
        return ids[ids != self.boundary_id].astype(np.uint8).tobytes().decode(errors="replace")


class BytePairTokenizer:
    """A byte-pair encoding of the library `tokenizers`, with the boundary after the library's own tokens.

    The library does not know the boundary, so no text can encode to it.
    """

    def __init__(self, encoding: tokenizers.Tokenizer) -> None:
        """Wraps an encoding whose tokens are made of the byte-level alphabet, one character for each byte."""
        self.encoding = encoding
        self.boundary_id = encoding.get_vocab_size()
        self.vocab_size = self.boundary_id + 1
        self.name = f"bpe:{self.vocab_size}"
        self.digest = content_digest(encoding.to_str().encode())
        lengths = [len(encoding.id_to_token(token)) for token in range(self.boundary_id)]
        self.token_bytes = np.array([*lengths, 0], np.int32)

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        return np.array(self.encoding.encode(text).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(encoded.ids, np.int32) for encoded in self.encoding.encode_batch_fast(list(texts))]

    def decode(self, ids: Integer[np.ndarray, "T"]) -> str:
        return self.encoding.decode(ids[ids != self.boundary_id].tolist())


def load_tokenizer(name: str, corpus: Corpus | None, cache_dir: Path | None = None) -> Tokenizer:
    """Returns the tokenizer `bytes`, or `bpe:SIZE` trained on the training documents of `corpus`, cached by its digest.

    Args:
      name: `data.tokenizer`.
      corpus: training text of the encoding; None with `bytes`.
      cache_dir: folder of trained encodings; `cache_directory()` if None.

    Raises:
      ConfigError: the corpus is too small for a vocabulary of SIZE.
    """
    if name == "bytes":
        return ByteTokenizer()
    size = int(name.removeprefix("bpe:"))
    path = (cache_dir or cache_directory()) / "tokenizers" / f"{corpus.digest[:16]}-bpe-{size}-{SCHEME}.json"
    if not path.exists():
        print(f"Training a byte-pair encoding of {size} tokens on {corpus.name}", file=sys.stderr, flush=True)
        with write_cached(path) as beside:
            encoding = _train(corpus, size - 1)
            reached = encoding.get_vocab_size() + 1
            accepted = f"a SIZE of at most {reached}, the most that {corpus.name} gives"
            require(reached == size, "data.tokenizer", name, accepted)
            # The library's own `save` hides the error of a full disk.
            beside.write_text(encoding.to_str(pretty=True), encoding="utf-8")
    return BytePairTokenizer(tokenizers.Tokenizer.from_file(str(path)))


def _train(corpus: Corpus, size: int) -> tokenizers.Tokenizer:
    """Trains an encoding of `size` tokens with the 256 bytes; it has fewer if the corpus has too few pairs to merge."""
    encoding = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoding.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    encoding.train_from_iterator(_sample(corpus, BPE_SAMPLE_CHARACTERS), trainer)
    return encoding


def _sample(corpus: Corpus, limit: int) -> Iterator[str]:
    """Yields training documents at equal distances, at most `limit` characters in all."""
    stride = -(-sum(map(len, corpus.documents("train"))) // limit)
    left = limit
    for text in itertools.islice(corpus.documents("train"), 0, None, max(stride, 1)):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
