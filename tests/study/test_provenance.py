import subprocess
from pathlib import Path

import jax

import moe_jax
from moe_jax.study.provenance import git_revision, host, versions


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


def test_git_revision_says_when_files_differ_from_the_commit(tmp_path):
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    clean = git_revision(tmp_path)
    assert len(clean) >= 7
    assert set(clean) <= set("0123456789abcdef")
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{clean}+changes"


def test_what_a_study_writes_changes_no_revision(tmp_path):
    """Neither seen from the top nor from the package."""
    results, package = tmp_path / "experiments/results/study", tmp_path / "package"
    for directory in (results, package):
        directory.mkdir(parents=True)
        (directory / "file").write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    (results / "file").write_text("two")
    assert "changes" not in git_revision(tmp_path)
    assert "changes" not in git_revision(package)
    (tmp_path / "experiments/results.py").write_text("new")
    git(tmp_path, "add", ".")
    assert git_revision(package).endswith("+changes")


def test_an_untracked_directory_has_no_revision(tmp_path):
    assert git_revision(tmp_path) == "unknown"
    git(tmp_path, "init")
    assert git_revision(tmp_path) == "unknown"


def test_host_and_versions():
    machine = host()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["platform"] == "cpu"
    assert machine["devices"] == jax.device_count()
    assert versions()["jax"] == jax.__version__
    assert versions()["moe_jax"] == moe_jax.__version__
