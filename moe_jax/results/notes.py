"""Prose about committed results, which lies beside them and names the table that it is about."""

import hashlib
import re
from pathlib import Path

DIGITS = 12


def table_digest(path: Path) -> str:
    """Returns the first digits of the SHA-256 digest of a table of results."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]


def read_notes(directory: Path) -> str:
    """Reads `notes.md` beside `results.jsonl`, without its first paragraph, which names the table's digest.

    Returns:
      The notes in Markdown; empty if there are none, or if they are about another table.
    """
    path = directory / "notes.md"
    if not path.exists():
        return ""
    about, _, notes = path.read_text(encoding="utf-8").partition("\n\n")
    named = re.search(rf"digest `([0-9a-f]{{{DIGITS}}})`", about)
    table = directory / "results.jsonl"
    return notes.strip() if named and table.exists() and named[1] == table_digest(table) else ""
