"""Documents in files: which split each belongs to, and what identifies the set of them."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Document:
    """A file, or a part of one, that is one document of a corpus.

    Attributes:
      key: the file's path relative to the corpus, with `/`; the same on every machine.
      path: where the file is on this one.
      digest: SHA-256 of the document's text, in hex.
      split: where the document belongs.
      start, stop: the characters of the file that are the document; None is the end.
    """

    key: str
    path: Path
    digest: str
    split: Split
    start: int = 0
    stop: int | None = None

    def text(self) -> str:
        """Reads the document."""
        return self.path.read_bytes().decode()[self.start : self.stop]


def content_digest(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def split_by_content(digest: str, validation_fraction: float) -> Split:
    """The split of a document, from its digest alone: adding or renaming other documents does not move it."""
    return "validation" if int(digest[:16], 16) < validation_fraction * 2**64 else "train"


def corpus_digest(entries: Iterable[tuple[str, str, str]]) -> str:
    """SHA-256 in hex over the sorted (key, content digest, split) of a corpus, whatever order they come in."""
    return content_digest("\n".join("\t".join(entry) for entry in sorted(entries)).encode())


def documents_digest(documents: Iterable[Document]) -> str:
    """`corpus_digest` of `documents`."""
    return corpus_digest((document.key, document.digest, document.split) for document in documents)


def texts(documents: Iterable[Document], split: Split) -> Iterator[str]:
    """Reads the documents of one split, in order."""
    return (document.text() for document in documents if document.split == split)


def tail_boundary(text: str, validation_fraction: float) -> int:
    """The character where a contiguous tail of about `validation_fraction` of `text` begins.

    The cut moves on to the end of a paragraph, else of a line, where that leaves half of the tail; else it stays.
    """
    tail = round(len(text) * validation_fraction)
    cut = len(text) - tail
    for end in ("\n\n", "\n"):
        found = text.find(end, max(cut - len(end), 0), cut + tail // 2)
        if found >= 0:
            return found + len(end)
    return cut
