"""Documents in files, the split of each, and a corpus: a set of documents with a digest."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document of a corpus: a file or a part of one.

    Attributes:
      key: path of the file relative to the corpus, with `/`; the same on every machine.
      path: path of the file on this machine.
      digest: SHA-256 of the document's text, in hex.
      split: split of the document.
      start, stop: range of the document's characters in the file; None is the end.
    """

    key: str
    path: Path
    digest: str
    split: Split
    start: int = 0
    stop: int | None = None

    def text(self) -> str:
        """Reads the document."""
        return decoded(self.path.read_bytes())[self.start : self.stop]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text to train and validate on.

    Attributes:
      name: `data.corpus` of the configuration.
      digest: SHA-256 over the documents and their splits, in hex; it names the files of data derived from them.
      documents: reads the documents of a split, always in the same order; none is empty.
    """

    name: str
    digest: str
    documents: Callable[[Split], Iterator[str]]


def decoded(content: bytes) -> str:
    """Decodes UTF-8, without the mark of byte order that some editors put first; raises UnicodeDecodeError."""
    return content.decode("utf-8-sig")


def is_encodable(text: str) -> bool:
    """Returns whether UTF-8 can encode a text; it cannot encode half a surrogate pair, which JSON can write."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def content_digest(content: bytes) -> str:
    """Returns the SHA-256 of `content` in hex."""
    return hashlib.sha256(content).hexdigest()


def split_by_content(digest: str, validation_fraction: float) -> Split:
    """Returns the split of a document, from its digest alone, so that other documents do not change it."""
    return "validation" if int(digest[:16], 16) < validation_fraction * 2**64 else "train"


def corpus_digest(entries: Iterable[tuple[str, str, str]]) -> str:
    """Returns the SHA-256 in hex over the sorted (key, content digest, split) entries of a corpus."""
    text = "\n".join("\t".join(entry) for entry in sorted(entries))
    # A file's name may be bytes that are not UTF-8, which Python has as halves of surrogate pairs.
    return content_digest(text.encode(errors="surrogateescape"))


def documents_digest(documents: Iterable[Document]) -> str:
    """Returns the `corpus_digest` of `documents`."""
    return corpus_digest((document.key, document.digest, document.split) for document in documents)


def texts(documents: Iterable[Document], split: Split) -> Iterator[str]:
    """Reads the documents of one split, in order."""
    return (document.text() for document in documents if document.split == split)


def tail_boundary(text: str, validation_fraction: float) -> int:
    """Returns the index of the character where a tail of about `validation_fraction` of `text` begins.

    The cut moves to the next end of a paragraph, else of a line, if that leaves at least half of the tail.
    """
    tail = round(len(text) * validation_fraction)
    cut = len(text) - tail
    for end in ("\n\n", "\n"):
        found = text.find(end, max(cut - len(end), 0), cut + tail // 2)
        if found >= 0:
            return found + len(end)
    return cut
