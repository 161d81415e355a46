"""Packing: documents end to end in one stream of tokens, cut into sequences of equal length.

Axes: B batch, S sequence, T tokens of the stream.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped
from tqdm import tqdm

from moe_jax.data.cache import cache_directory, write_cached
from moe_jax.data.documents import Corpus, Split
from moe_jax.data.tokenization import SCHEME, Tokenizer
from moe_jax.runtime.files import GrowingFile

Example = dict[str, Shaped[np.ndarray, "_"]]
Batch = dict[str, Shaped[np.ndarray, "B _"]]

DOCUMENTS_PER_CALL = 256


def token_stream(
    corpus: Corpus, split: Split, tokenizer: Tokenizer, cache_dir: Path | None = None
) -> Integer[np.ndarray, "T"]:
    """Returns all tokens of a split, each document after a boundary, as a memory-mapped file.

    The file is cached by the digests of the corpus and of the tokenizer.

    Args:
      corpus: the source of the documents.
      split: `train` or `validation`.
      tokenizer: makes the tokens.
      cache_dir: folder of cached streams; `cache_directory()` if None.

    Returns:
      [T] of uint16, or uint32 where the vocabulary needs it.
    """
    name = f"{corpus.digest[:16]}-{tokenizer.digest[:16]}-{SCHEME}-{split}.npy"
    path = (cache_dir or cache_directory()) / "tokens" / name
    if not path.exists():
        # NumPy's own file would lose the last tokens on a full disk without a word.
        with write_cached(path) as beside, contextlib.closing(GrowingFile(beside)) as file:
            np.save(file, tokenise(corpus.documents(split), tokenizer))
    return np.load(path, mmap_mode="r")


def tokenise(documents: Iterable[str], tokenizer: Tokenizer) -> Integer[np.ndarray, "T"]:
    """Joins the tokens of `documents`, each after a boundary: [T], uint16 or, for a large vocabulary, uint32."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    boundary = np.array([tokenizer.boundary_id], dtype)
    pieces = [boundary[:0]]
    progress = tqdm(documents, "Tokenising", delay=1, unit=" documents")
    for texts in _batched(progress, DOCUMENTS_PER_CALL):
        for ids in tokenizer.encode_batch(texts):
            pieces += [boundary, ids.astype(dtype)]
    return np.concatenate(pieces)


def example_count(stream: Integer[np.ndarray, "T"], sequence_length: int) -> int:
    """Counts the sequences of a stream; the last may be partial, and the stream's last token is only a target."""
    return max(0, -(-(len(stream) - 1) // sequence_length))


def pack_example(stream: Integer[np.ndarray, "T"], index: int, sequence_length: int, boundary_id: int) -> Example:
    """Cuts sequence `index` from a stream: the tokens index * S to (index + 1) * S.

    A boundary begins a document, so it is the first token of a segment. As the target of the token before it, it marks
    the end of a document and is learned like any other token.

    Args:
      stream: [T], result of `tokenise`.
      index: from 0 to `example_count` - 1.
      sequence_length: S.
      boundary_id: the token that begins a document.

    Returns:
      int32 arrays [S] and a bool mask; past the end of the stream all are 0.
      - `tokens`: the inputs.
      - `targets`: the next token of the stream.
      - `segment_ids`: number of the document within this sequence, from 1; 0 is padding.
      - `positions`: position in the document's part of this sequence, from 0.
      - `loss_mask`: true at positions with a target.
    """
    start = index * sequence_length
    cut = stream[start : start + sequence_length + 1]
    window = np.zeros(sequence_length + 1, np.int32)
    window[: len(cut)] = cut
    place = np.arange(sequence_length, dtype=np.int32)
    valid = place < len(cut) - 1
    begins = valid & (window[:-1] == boundary_id)
    segments = np.cumsum(begins, dtype=np.int32) + (0 if begins[0] else 1)
    document_start = np.maximum.accumulate(np.where(begins, place, 0))
    return {
        "tokens": np.where(valid, window[:-1], 0),
        "targets": window[1:],
        "segment_ids": np.where(valid, segments, 0),
        "positions": np.where(valid, place - document_start, 0),
        "loss_mask": valid,
    }


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
