"""Files that are there whole or not at all."""

import pytest

from moe_jax.files import write_beside, write_whole


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
