"""Text to tokens and back: UTF-8 bytes, or a byte-level byte-pair encoding trained on the corpus.

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
from moe_jax.data.cache import cache_directory
from moe_jax.data.corpora import Corpus
from moe_jax.runtime.files import write_beside

SCHEME = "v1"  # Part of the names of cached files: change it with anything that changes a corpus's tokens.
BPE_SAMPLE_CHARACTERS = 8_000_000


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into tokens and back. The document boundary is the last token, and no text encodes to it.

    Attributes:
      name: as the configuration has it.
      vocab_size: V, with the boundary.
      boundary_id: the token that precedes each document, V - 1.
      token_bytes: [V], the UTF-8 bytes that each token stands for; 0 for the boundary.
    """

    name: str
    vocab_size: int
    boundary_id: int
    token_bytes: Int32[np.ndarray, "V"]

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """The tokens of `text`, without a boundary."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text."""
        ...

    def decode(self, ids: Integer[np.ndarray, "T"]) -> str:
        """The text of `ids`, exactly what `encode` was given; without boundaries, U+FFFD where it is not UTF-8."""
        ...


class ByteTokenizer:
    """A token for each of the 256 bytes, and the boundary."""

    name = "bytes"
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

    The library does not know the boundary: no text, whatever is written in it, can encode to it.
    """

    def __init__(self, encoding: tokenizers.Tokenizer) -> None:
        """Takes an encoding whose tokens are all made of the byte-level alphabet, a character for each byte."""
        self.encoding = encoding
        self.boundary_id = encoding.get_vocab_size()
        self.vocab_size = self.boundary_id + 1
        self.name = f"bpe:{self.vocab_size}"
        lengths = [len(encoding.id_to_token(token)) for token in range(self.boundary_id)]
        self.token_bytes = np.array([*lengths, 0], np.int32)

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        return np.array(self.encoding.encode(text).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(encoded.ids, np.int32) for encoded in self.encoding.encode_batch_fast(list(texts))]

    def decode(self, ids: Integer[np.ndarray, "T"]) -> str:
        return self.encoding.decode(ids[ids != self.boundary_id].tolist())


def load_tokenizer(name: str, corpus: Corpus | None, cache_dir: Path | None = None) -> Tokenizer:
    """Gives the tokenizer `bytes`, or `bpe:SIZE` trained on the training documents of `corpus`, cached by its digest.

    Args:
      name: `data.tokenizer`.
      corpus: what the encoding is trained on; `bytes` needs none.
      cache_dir: where trained encodings are kept; `cache_directory()` if None.

    Raises:
      ConfigError: the corpus has too few pairs for a vocabulary of SIZE.
    """
    if name == "bytes":
        return ByteTokenizer()
    size = int(name.removeprefix("bpe:"))
    path = (cache_dir or cache_directory()) / "tokenizers" / f"{corpus.digest[:16]}-bpe-{size}-{SCHEME}.json"
    if not path.exists():
        print(f"Training a byte-pair encoding of {size} tokens on {corpus.name}", file=sys.stderr, flush=True)
        encoding = _train(corpus, size - 1)
        reached = encoding.get_vocab_size() + 1
        require(reached == size, "data.tokenizer", name, f"a SIZE of at most {reached}, which {corpus.name} gives")
        with write_beside(path) as beside:
            encoding.save(str(beside))
    return BytePairTokenizer(tokenizers.Tokenizer.from_file(str(path)))


def _train(corpus: Corpus, size: int) -> tokenizers.Tokenizer:
    """Trains an encoding of `size` tokens, the 256 bytes among them; fewer if the corpus runs out of pairs."""
    encoding = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoding.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    encoding.train_from_iterator(_sample(corpus, BPE_SAMPLE_CHARACTERS), trainer)
    return encoding


def _sample(corpus: Corpus, limit: int) -> Iterator[str]:
    """Yields training documents at equal distances, at most `limit` characters of them in all."""
    stride = -(-sum(map(len, corpus.documents("train"))) // limit)
    left = limit
    for text in itertools.islice(corpus.documents("train"), 0, None, max(stride, 1)):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
