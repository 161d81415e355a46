"""A TFDS data set of the running interpreter's own sources: tens of megabytes of code and prose without a download.

Standard libraries differ between interpreters, so prepare it into a folder named by `documents_digest` of
`source_documents`, as `moe_jax.data.corpora` does.
"""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from moe_jax.data.documents import SPLITS, Document, Split, content_digest, split_by_content

SUFFIXES = (".py", ".txt", ".rst", ".md")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "lib-dynload"}


class Builder(tfds.core.GeneratorBasedBuilder):
    """A data set builder: one example per file, with its relative path (with `/`) and its text, in order of paths."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="stdlib", description="The standard library."),
        tfds.core.BuilderConfig(name="installed", description="The standard library and the installed packages."),
    )

    def __init__(self, *, validation_fraction: float = 0.05, **options: Any) -> None:
        """Sets the share of the files that validate; the other options are TFDS's."""
        self._validation_fraction = validation_fraction
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"path": tfds.features.Text(), "text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[Split, Any]:
        documents = source_documents(self.builder_config.name, self._validation_fraction)
        return {split: self._generate_examples(documents, split) for split in SPLITS}

    def _generate_examples(self, documents: Sequence[Document], split: Split) -> Iterator[tuple[int, dict[str, str]]]:
        for number, document in enumerate(documents):
            if document.split == split:
                yield number, {"path": document.key, "text": document.text()}


def source_documents(variant: str, validation_fraction: float) -> list[Document]:
    """Lists the interpreter's text files, sorted by key; leaves out files that are empty, repeated or not UTF-8.

    Args:
      variant: `stdlib`, or `installed`, which adds the installed packages.
      validation_fraction: share of the files that validate.
    """
    documents: dict[str, Document] = {}  # By digest: of files with the same content the first stays.
    files = [(key, path) for key, path in _files(variant) if path.is_file()]  # A link may point nowhere.
    for key, path in sorted(files):
        content = path.read_bytes()
        digest = content_digest(content)
        if content and digest not in documents and _is_utf8(content):
            documents[digest] = Document(key, path, digest, split_by_content(digest, validation_fraction))
    return list(documents.values())


def _files(variant: str) -> Iterator[tuple[str, Path]]:
    """Yields the key and the path of every source file."""
    roots = {"stdlib": ("stdlib",), "installed": ("stdlib", "purelib", "platlib")}[variant]
    for name in roots:
        root = Path(sysconfig.get_path(name))
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = [subfolder for subfolder in subfolders if subfolder not in SKIPPED_FOLDERS]
            for path in (Path(folder, file) for file in files if file.endswith(SUFFIXES)):
                yield f"{name}/{path.relative_to(root).as_posix()}", path


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
