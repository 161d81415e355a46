"""The native library: it is there, or its absence is said aloud with the reason."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moe_jax.native import library

ROOT = Path(__file__).parents[2]


def test_it_is_there():
    """Installation has compiled it for this version of JAX."""
    assert library.LIBRARY.exists()
    assert library.is_installed()


def test_a_missing_library_is_said_with_the_compiler_s_message(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libmoe_jax.so")
    with pytest.warns(
        RuntimeWarning, match=r"native code for CPUs is missing, .* install moe_jax again to build .*\.so$"
    ):
        assert not library.is_installed.__wrapped__()
    (tmp_path / "libmoe_jax.txt").write_text("handlers.cc:7: error: unknown type\n")
    with pytest.warns(RuntimeWarning, match=r"\.so: handlers.cc:7: error: unknown type$"):
        assert not library.is_installed.__wrapped__()


def test_a_library_that_cannot_be_built_leaves_the_reason(tmp_path):
    """The environment of the tests has no compiler; installation goes on without the library."""
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.txt")
    shutil.copytree(ROOT / "moe_jax/native", tmp_path / "moe_jax/native", ignore=ignore)
    (tmp_path / "moe_jax/native/libmoe_jax.so").write_text("of an older version")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "No module named ziglang" in (tmp_path / "moe_jax/native/libmoe_jax.txt").read_text()
    assert not (tmp_path / "moe_jax/native/libmoe_jax.so").exists()
