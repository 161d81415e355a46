"""The folder of prepared data: where it is, and one line when it cannot be written to."""

import contextlib
import resource
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from array_record.python.array_record_module import ArrayRecordWriter

from moe_jax.configuration import ConfigError
from moe_jax.data.cache import cache_directory, write_cached
from moe_jax.runtime.files import GrowingFile


def test_it_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("MOE_JAX_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "moe_jax"


def test_a_user_without_a_home_is_told_to_name_it(monkeypatch):
    monkeypatch.delenv("MOE_JAX_CACHE", raising=False)
    # What expanduser returns for a user whom the system does not know.
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"no home .*; accepted: MOE_JAX_CACHE=FOLDER"):
        cache_directory()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"file/tokens/a' cannot be written: .*Not a directory.*; .* MOE_JAX_CACHE"),
        write_cached(tmp_path / "file" / "tokens" / "a"),
    ):
        pytest.fail("the work began")


def _array(path: Path) -> None:
    with contextlib.closing(GrowingFile(path)) as file:
        np.save(file, np.zeros(10_000))


def _encoding(path: Path) -> None:
    vocabulary = {str(i): i for i in range(10_000)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0")).save(str(path))


def _records(path: Path) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(100):
        writer.write(np.random.default_rng(i).bytes(1_000))
    writer.close()


@pytest.mark.parametrize("write", [_array, _encoding, _records])
def test_a_full_disk_is_said_in_one_line_whatever_library_writes(write, tmp_path):
    """The system's limit on the size of a file fails as a full disk does: in the middle of a write."""
    message = r"^'.*data.npy' cannot be written: .*too large; .* MOE_JAX_CACHE=.*"
    with (
        pytest.raises(ConfigError, match=message),
        _files_limited_to(10_000),
        write_cached(tmp_path / "data.npy") as beside,
    ):
        write(beside)
    assert not list(tmp_path.iterdir())


def test_errors_of_the_work_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), write_cached(tmp_path / "data"):
        1 / 0  # noqa: B018


class _files_limited_to:
    """Limits the size of files that this process writes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
