"""Pairs of texts, for a model that reads one and is to say the other."""

import ast
import dataclasses
import io
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from moe_jax.configuration import require
from moe_jax.data import documents as docs
from moe_jax.data.cache import cache_directory
from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import Corpus, load_corpus, matching_files
from moe_jax.data.documents import SPLITS, Split
from moe_jax.runtime.files import json_records, write_beside

SCHEME = "v2"  # Part of the names of cached files: change it with what pairs are made of a corpus.

NAME = "_"
"""What stands in the place of a function's name."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text, and what is to be said of it."""

    inputs: str
    targets: str

    @property
    def digest(self) -> str:
        """SHA-256 of both."""
        return docs.content_digest(json.dumps([self.inputs, self.targets]).encode())


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A corpus of pairs.

    Attributes:
      name: as the configuration has it.
      digest: SHA-256 over the pairs and how they are split, in hex.
      splits: the pairs of each split, in the order of their digests, none twice.
    """

    name: str
    digest: str
    splits: dict[Split, list[Pair]]


def load_pairs(config: DataConfig, cache_dir: Path | None = None) -> Pairs:
    """Finds the pairs that `config.corpus` names.

    - `python_functions`: from the source of each function of the standard library, its name replaced by NAME, to its
      name. A function is of the split of its file.
    - `json_lines:GLOB[,GLOB...]`: each line an object with texts `inputs` and `targets`; a pair is of a split by its
      digest.

    Raises:
      ConfigError: nothing matches, a line is no such object, or a split is empty.
    """
    if config.corpus == "python_functions":
        source = DataConfig(corpus="python_source", validation_fraction=config.validation_fraction)
        found = _functions(load_corpus(source, cache_dir), cache_dir or cache_directory())
    else:
        found = _json_lines(config)
    splits: dict[Split, dict[str, Pair]] = {split: {} for split in SPLITS}
    for split, pair in found:
        # What one split has, the other may not.
        if not any(pair.digest in pairs for pairs in splits.values()):
            splits[split][pair.digest] = pair
    entries = [(digest, digest, split) for split, pairs in splits.items() for digest in pairs]
    for split, pairs in splits.items():
        accepted = f"a corpus with pairs in both splits; {split} has none"
        require(bool(pairs), "data.corpus", config.corpus, accepted)
    by_digest = {split: [pairs[digest] for digest in sorted(pairs)] for split, pairs in splits.items()}
    return Pairs(config.corpus, docs.corpus_digest(entries), by_digest)


def _functions(corpus: Corpus, cache_dir: Path) -> Iterator[tuple[Split, Pair]]:
    """Kept by the corpus's digest: to parse a library takes a minute."""
    path = cache_dir / "pairs" / f"{corpus.digest[:16]}-functions-{SCHEME}.json"
    if not path.exists():
        documents = [(split, text) for split in SPLITS for text in corpus.documents(split)]
        progress = tqdm(documents, "Finding functions", delay=1, unit=" documents")
        found = [[split, pair.inputs, pair.targets] for split, text in progress for pair in functions_of(text)]
        with write_beside(path) as beside:
            beside.write_text(json.dumps(found))
    for split, inputs, targets in json.loads(path.read_text()):
        yield split, Pair(inputs, targets)


def functions_of(text: str) -> list[Pair]:
    """From each function of a module to its name, in whose place NAME is wherever it was; none of what is no Python.

    Names with two underscores at both ends, which many classes share, are left out.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    # The parser's lines: str.splitlines also cuts at form feeds.
    lines, pairs = io.StringIO(text, newline=None).readlines(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not re.fullmatch("__.*__|_", node.name):
            source = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            pairs.append(Pair(re.sub(rf"\b{node.name}\b", NAME, source), node.name))
    return pairs


def _json_lines(config: DataConfig) -> Iterator[tuple[Split, Pair]]:
    for path in matching_files(config):
        for where, record in json_records(path):
            texts = [record.get(name) for name in ("inputs", "targets")] if isinstance(record, dict) else [None]
            fits = all(isinstance(text, str) for text in texts)
            require(fits, where, record, "an object with texts 'inputs' and 'targets'")
            pair = Pair(*texts)
            yield docs.split_by_content(pair.digest, config.validation_fraction), pair
