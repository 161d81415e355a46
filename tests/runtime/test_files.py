"""Files are written whole or not at all."""

import errno
import json
import os

import pytest

from moe_jax.configuration import ConfigError
from moe_jax.runtime.files import StorageError, read_json_lines, storage_errors, write_beside, write_whole


@pytest.mark.parametrize(("content", "expected"), [(b"\x00new", b"\x00new"), ("n\u00e9w\n", b"n\xc3\xa9w\n")])
def test_a_file_replaces_the_old_one_and_leaves_nothing_beside(tmp_path, content, expected):
    path = tmp_path / "folder" / "file"
    write_whole(path, "old")
    write_whole(path, content)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == expected


def test_a_file_whose_writing_fails_leaves_nothing(tmp_path):
    def write_half():
        with write_beside(tmp_path / "file") as beside:
            beside.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_finished_first_is_kept(tmp_path):
    target = tmp_path / "folder"
    with write_beside(target) as beside:
        beside.mkdir()
        target.mkdir()
        (beside / "mine").touch()
        (target / "theirs").touch()
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def test_lines_of_json_are_read_but_for_half_a_last_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == []
    path.write_text(json.dumps({"a": "n\u00e9"}) + "\n3\n[1, ")
    assert read_json_lines(path) == [{"a": "n\u00e9"}, 3]


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"name": "dense"}\nnot json\n')
    with pytest.raises(ConfigError, match=r"lines\.jsonl:2 is b'not json'; accepted: JSON"):
        read_json_lines(path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/file"),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [OS error 28: ENOSPC]"),
    ],
)
def test_errors_of_a_disk_name_its_folder(tmp_path, error):
    with pytest.raises(StorageError, match=r"^files cannot be written to '.*': (No space left|Read-only)"):
        raise_within(storage_errors(tmp_path), error)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file"), ValueError("a bug")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        raise_within(storage_errors(tmp_path), error)
    assert raised.value is error


def raise_within(context, error):
    with context:
        raise error
