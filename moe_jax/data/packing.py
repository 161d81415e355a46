"""Documents end to end in one stream of tokens, and sequences of equal length cut from it.

Axes: B batch, S sequence, T tokens of the stream.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped
from tqdm import tqdm

from moe_jax.data.cache import cache_directory
from moe_jax.data.corpora import Corpus
from moe_jax.data.documents import Split
from moe_jax.data.tokenization import SCHEME, Tokenizer
from moe_jax.runtime.files import write_beside

Example = dict[str, Shaped[np.ndarray, "_"]]
Batch = dict[str, Shaped[np.ndarray, "B _"]]

DOCUMENTS_PER_CALL = 256


def token_stream(
    corpus: Corpus, split: Split, tokenizer: Tokenizer, cache_dir: Path | None = None
) -> Integer[np.ndarray, "T"]:
    """All tokens of a split, each document after a boundary, mapped from a file that is kept by the corpus's digest.

    Args:
      corpus: where the documents come from.
      split: `train` or `validation`.
      tokenizer: as `load_tokenizer` gives it for this corpus.
      cache_dir: where streams are kept; `cache_directory()` if None.

    Returns:
      [T] of uint16, or uint32 where the vocabulary needs it.
    """
    scheme = f"{tokenizer.name.replace(':', '-')}-{SCHEME}"
    path = (cache_dir or cache_directory()) / "tokens" / f"{corpus.digest[:16]}-{scheme}-{split}.npy"
    if not path.exists():
        with write_beside(path) as beside:
            np.save(beside, tokenise(corpus.documents(split), tokenizer))
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
    """The number of sequences in a stream, the last of which may be partial; its last token is only a target."""
    return max(0, -(-(len(stream) - 1) // sequence_length))


def pack_example(stream: Integer[np.ndarray, "T"], index: int, sequence_length: int, boundary_id: int) -> Example:
    """Cuts sequence `index`, the tokens from index S to (index + 1) S, from a stream.

    A boundary begins a document, so it is the first token of a segment; as the target of the token before, it says
    that a document ends, and is learned like any other.

    Args:
      stream: [T], as `tokenise` gives it.
      index: from 0 to `example_count` - 1.
      sequence_length: S.
      boundary_id: the token that begins a document.

    Returns:
      int32 arrays [S], and a mask; past the end of the stream all are 0.
      - `tokens`: the inputs.
      - `targets`: the token that follows each of them in the stream.
      - `segment_ids`: the document that a token belongs to, from 1 in each sequence; 0 is padding.
      - `positions`: the place in the document's part of this sequence, from 0.
      - `loss_mask`: bool, whether there is a target.
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
