"""Pairs of texts, for a model that reads the first and predicts the second."""

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
from moe_jax.data.cache import cache_directory, write_cached
from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import load_corpus, matching_files
from moe_jax.data.documents import SPLITS, Corpus, Split
from moe_jax.data.tasks.text_to_text import Pair
from moe_jax.runtime.files import json_records

SCHEME = "v2"  # Part of the names of cached files: change it with the way pairs are made from a corpus.

NAME = "_"
"""Placeholder for a function's name in its code."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A corpus of pairs.

    Attributes:
      name: `data.corpus` of the configuration.
      digest: SHA-256 over the pairs and their splits, in hex.
      splits: the pairs of each split, in order of their digests, without repeats.
    """

    name: str
    digest: str
    splits: dict[Split, list[Pair]]


def load_pairs(config: DataConfig, cache_dir: Path | None = None) -> Pairs:
    """Finds the pairs that `config.corpus` names.

    - `python_functions`: the source of each function of the standard library, with its name replaced by NAME, and the
      name. A function belongs to the split of its file.
    - `json_lines:GLOB[,GLOB...]`: each line an object with texts `inputs` and `targets`. The digest of a pair decides
      its split.

    Raises:
      ConfigError: no file matches, a line is no such object, or a split is empty.
    """
    if config.corpus == "python_functions":
        source = DataConfig(corpus="python_source", validation_fraction=config.validation_fraction)
        found = _functions(load_corpus(source, cache_dir), cache_dir or cache_directory())
    else:
        found = _json_lines(config)
    splits: dict[Split, dict[str, Pair]] = {split: {} for split in SPLITS}
    for split, pair in found:
        # The splits must not share a pair.
        if not any(pair.digest in pairs for pairs in splits.values()):
            splits[split][pair.digest] = pair
    entries = [(digest, digest, split) for split, pairs in splits.items() for digest in pairs]
    for split, pairs in splits.items():
        accepted = f"a corpus with pairs in both splits; split {split} has none"
        require(bool(pairs), "data.corpus", config.corpus, accepted)
    by_digest = {split: [pairs[digest] for digest in sorted(pairs)] for split, pairs in splits.items()}
    return Pairs(config.corpus, docs.corpus_digest(entries), by_digest)


def _functions(corpus: Corpus, cache_dir: Path) -> Iterator[tuple[Split, Pair]]:
    """Yields the functions of a corpus, cached by its digest because parsing a library takes a minute."""
    path = cache_dir / "pairs" / f"{corpus.digest[:16]}-functions-{SCHEME}.json"
    if not path.exists():
        with write_cached(path) as beside:
            documents = [(split, text) for split in SPLITS for text in corpus.documents(split)]
            progress = tqdm(documents, "Finding functions", delay=1, unit=" documents")
            found = [[split, pair.inputs, pair.targets] for split, text in progress for pair in functions_of(text)]
            beside.write_text(json.dumps(found))
    for split, inputs, targets in json.loads(path.read_text()):
        yield split, Pair(inputs, targets)


def functions_of(text: str) -> list[Pair]:
    """Makes a pair of each function of a module: its code, with NAME for its name, and the name.

    Functions named like `__init__`, which many classes share, are left out. Text that is not Python gives no pairs.
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
            fits = all(isinstance(text, str) and docs.is_encodable(text) for text in texts)
            require(fits, where, record, "an object with texts 'inputs' and 'targets', without half a surrogate pair")
            pair = Pair(*texts)
            yield docs.split_by_content(pair.digest, config.validation_fraction), pair
