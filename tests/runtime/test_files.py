"""Files are written whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.runtime.files import (
    GrowingFile,
    WriteError,
    json_records,
    parse_json,
    read_json_lines,
    write_beside,
    write_whole,
)


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


def test_what_is_no_json_however_deep_is_one_line():
    with pytest.raises(ConfigError, match=r"^here is b'\[\[.*'; accepted: JSON$"):
        parse_json(b"[" * 100_000, "here")


def test_records_come_after_a_mark_of_byte_order_and_blank_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    for content in (b"\xef\xbb\xbf\r\n1\r\n", b"\xef\xbb\xbf\n1", b"\n1\n\n"):
        path.write_bytes(content)
        assert list(json_records(path)) == [(f"{path}:2", 1)]
    path.unlink()
    with pytest.raises(ConfigError, match=r"lines\.jsonl cannot be read: No such file or directory; accepted: "):
        list(json_records(path))


def test_a_file_that_cannot_be_written_is_one_line_with_its_path(tmp_path):
    """Linux has a file that is on a full disk."""
    full = GrowingFile(Path("/dev/full"))
    for _ in range(2):
        with pytest.raises(WriteError, match=r"^'/dev/full' cannot be written: .*No space left on device$"):
            full.write(b"line")
    with pytest.raises(WriteError, match=r"^'/dev/full' cannot be written: .*No space left on device$"):
        np.save(full, np.arange(9))
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"^'.*/file/inside' cannot be written: .*(Not a directory|File exists)"):
        write_whole(tmp_path / "file" / "inside", "text")


def test_a_file_grows_by_all_that_is_appended(tmp_path):
    for part in (b"a" * 3_000_000, b"b"):
        file = GrowingFile(tmp_path / "file")
        file.write(part)
        assert (tmp_path / "file").read_bytes().endswith(part)
        file.close()
    assert (tmp_path / "file").read_bytes() == b"a" * 3_000_000 + b"b"
