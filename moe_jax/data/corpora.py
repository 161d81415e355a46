"""Corpora by name: documents in a fixed order, split into training and validation, with a digest of the whole."""

import contextlib
import glob
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from moe_jax.configuration import ConfigError, require
from moe_jax.data import documents as docs
from moe_jax.data.cache import cache_directory, write_cached
from moe_jax.data.config import DataConfig
from moe_jax.data.documents import Corpus, Document, Split
from moe_jax.data.python_source import python_source_dataset_builder as python_source
from moe_jax.runtime.files import read_content


def load_corpus(config: DataConfig, cache_dir: Path | None = None) -> Corpus:
    """Finds the corpus that `config.corpus` names; prepares `python_source` unless it is cached.

    - `python_source`, `python_source/installed`: the hash of a file's content decides its split.
    - `text_files:GLOB[,GLOB...]`: likewise. If that leaves a split empty, as with a single file, the tail of every file
      validates instead, cut between paragraphs or lines.
    - `tfds:NAME[/CONFIG]`: a data set on disk in TFDS's array_record format, below `TFDS_DATA_DIR` or TFDS's default.
      It validates on its split `validation`, else `test`, else on the last examples of `train`. Its text is decoded
      only when its documents are read.

    Args:
      config: names the corpus and the share of it that validates.
      cache_dir: folder of prepared corpora; `cache_directory()` if None.

    Raises:
      ConfigError: no file matches, one cannot be read, the corpus is empty, it is not UTF-8, or a TFDS data set is not
        prepared, has no training split or lacks the text feature. Nothing has been written then.
    """
    kind, _, name = config.corpus.partition(":")
    if kind == "text_files":
        return _text_files(config)
    if kind == "tfds":
        return _tfds(config, name)
    return _python_source(config, cache_dir or cache_directory())


def _python_source(config: DataConfig, cache_dir: Path) -> Corpus:
    variant = "installed" if config.corpus.endswith("/installed") else "stdlib"
    documents = python_source.source_documents(variant, config.validation_fraction)
    _require_both_splits(documents, config)
    digest = docs.documents_digest(documents)
    folder = cache_dir / "corpora" / f"python_source-{digest[:16]}"
    options = {"config": variant, "validation_fraction": config.validation_fraction}
    if not folder.exists():
        print(f"Preparing {config.corpus}: {len(documents)} documents", file=sys.stderr, flush=True)
        with write_cached(folder) as beside, _without_output():
            python_source.Builder(**options, data_dir=beside).download_and_prepare()
    source = python_source.Builder(**options, data_dir=folder).as_data_source()
    return Corpus(config.corpus, digest, lambda split: (example["text"].decode() for example in source[split]))


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Drops the announcements and progress bars of TFDS, which has no local switch for them."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _text_files(config: DataConfig) -> Corpus:
    documents = _read_files(config, matching_files(config))
    if len({document.split for document in documents}) < 2:
        documents = [part for document in documents for part in _head_and_tail(document, config.validation_fraction)]
    _require_both_splits(documents, config)
    return Corpus(config.corpus, docs.documents_digest(documents), lambda split: docs.texts(documents, split))


def matching_files(config: DataConfig) -> list[Path]:
    """Returns the files that the globs of `config.corpus` match, each once, sorted.

    Raises:
      ConfigError: a glob matches no file.
    """
    patterns = config.corpus.partition(":")[2]
    paths = set()
    # A name may hold what globs and lists are made of.
    whole = os.path.isfile(os.path.expanduser(patterns))
    for pattern in [patterns] if whole else patterns.split(","):
        named = os.path.expanduser(pattern)
        found = [named] if os.path.isfile(named) else glob.glob(named, recursive=True)
        matches = [Path(match) for match in found]
        files = [path.absolute() for path in matches if path.is_file()]
        require(bool(files), "data.corpus", config.corpus, f"paths or globs of files; {pattern!r} matches none")
        paths.update(files)
    return sorted(paths)


def _read_files(config: DataConfig, paths: list[Path]) -> list[Document]:
    """Makes a document of each file that is not empty."""
    root = os.path.commonpath([path.parent for path in paths])
    documents = []
    for path in paths:
        content = read_content(path)
        if _decode(content, config, str(path)):
            digest = docs.content_digest(content)
            split = docs.split_by_content(digest, config.validation_fraction)
            documents.append(Document(path.relative_to(root).as_posix(), path, digest, split))
    return documents


def _decode(content: bytes, config: DataConfig, place: str) -> str:
    """Decodes `content`; raises ConfigError that names its `place` unless it is UTF-8 without NUL characters."""
    refused = f"data.corpus is {config.corpus!r}; accepted: text in UTF-8; {place}"
    try:
        text = docs.decoded(content)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{refused}: {error}") from error
    if "\0" in text:
        raise ConfigError(f"{refused}: character {text.index(chr(0))} is NUL, as in UTF-16 or in what is no text")
    return text


def _head_and_tail(document: Document, validation_fraction: float) -> list[Document]:
    """Divides a whole file into a part that trains and a part that validates; leaves out empty parts."""
    text = document.text()
    cut = docs.tail_boundary(text, validation_fraction)
    parts: list[tuple[Split, int, int]] = [("train", 0, cut), ("validation", cut, len(text))]
    return [
        Document(document.key, document.path, docs.content_digest(text[start:stop].encode()), split, start, stop)
        for split, start, stop in parts
        if start < stop
    ]


def _require_both_splits(documents: list[Document], config: DataConfig) -> None:
    require(bool(documents), "data.corpus", config.corpus, "a corpus that is not empty")
    for split in docs.SPLITS:
        require(
            any(document.split == split for document in documents),
            "data.validation_fraction",
            config.validation_fraction,
            f"a fraction that puts a document in each split; {split} has none of the {len(documents)}",
        )


def _tfds(config: DataConfig, name: str) -> Corpus:
    builder = prepared_builder(name, "data.corpus", config.corpus)
    _require_text_feature(config, builder)
    parts = _tfds_parts(config, builder)
    digest = _tfds_digest(config, builder, parts)

    def documents(split: Split) -> Iterator[str]:
        tfds_split, numbers = parts[split]
        source = builder.as_data_source(tfds_split)
        contents = ((number, source[number][config.text_feature]) for number in numbers)
        texts = (_decode(content, config, f"example {number} of {tfds_split}") for number, content in contents)
        return (text for text in texts if text)

    return Corpus(config.corpus, digest, documents)


def prepared_builder(name: str, field: str, value: str) -> tfds.core.DatasetBuilder:
    """Opens a TFDS data set on disk, without importing the code that made it, which may need TensorFlow.

    Args:
      name: NAME[/CONFIG], below `TFDS_DATA_DIR` or TFDS's default.
      field, value: the field that names the data set and its value, for messages.

    Raises:
      ConfigError: the data set is not prepared, or not in the array_record format.
    """
    accepted = (
        f"a prepared data set; prepare it with `tfds build {name} --file_format=array_record` and set TFDS_DATA_DIR "
        "to its folder"
    )
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
        builder.as_data_source()
    except (ValueError, NotImplementedError) as error:  # Not found or no such name; another format.
        raise ConfigError(f"{field} is {value!r}; accepted: {accepted}") from error
    return builder


def _require_text_feature(config: DataConfig, builder: tfds.core.DatasetBuilder) -> None:
    features = builder.info.features
    known = [name for name in features if isinstance(features[name], tfds.features.Text)]
    require(
        config.text_feature in known,
        "data.text_feature",
        config.text_feature,
        f"a text feature of {config.corpus}, which has {', '.join(known) or 'none'}",
    )


def _tfds_parts(config: DataConfig, builder: tfds.core.DatasetBuilder) -> dict[Split, tuple[str, range]]:
    """Returns, for each split of ours, the split of the data set to read and the numbers of its examples."""
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    require(
        "train" in splits, "data.corpus", config.corpus, f"a data set with a split 'train'; this one has {list(splits)}"
    )
    held_out = next((name for name in ("validation", "test") if name in splits), None)
    if held_out is None:
        cut = splits["train"] - round(splits["train"] * config.validation_fraction)
        parts = {"train": ("train", range(cut)), "validation": ("train", range(cut, splits["train"]))}
    else:
        parts = {"train": ("train", range(splits["train"])), "validation": (held_out, range(splits[held_out]))}
    for split, (_, numbers) in parts.items():
        require(len(numbers) > 0, "data.corpus", config.corpus, f"a corpus with examples; split {split} has none")
    return parts


def _tfds_digest(config: DataConfig, builder: tfds.core.DatasetBuilder, parts: dict[Split, tuple[str, range]]) -> str:
    """Digests the files of the data set with `corpus_digest`, which spares decoding every example."""
    entries = []
    for split, (tfds_split, numbers) in parts.items():
        for path in builder.info.splits[tfds_split].filepaths:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries.append((f"{path.name}#{config.text_feature}", digest, f"{split}[{numbers.start}:{numbers.stop}]"))
    return docs.corpus_digest(entries)
