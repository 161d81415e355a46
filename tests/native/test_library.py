"""The native library: it is there, or its absence is said aloud with the reason."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from experiments.native import check
from experiments.native.versions import TOLERANCE
from moe_jax.native import library

ROOT = Path(__file__).parents[2]

COMPILER = """
import sys
from pathlib import Path
with open("commands", "a") as file:
    print(*sys.argv[1:], file=file)
Path(sys.argv[sys.argv.index("-o") + 1]).write_text("compiled")
"""


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


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the library is built from."""
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.txt")
    shutil.copytree(ROOT / "moe_jax/native", tmp_path / "moe_jax/native", ignore=ignore)
    (tmp_path / "moe_jax/__init__.py").touch()
    return tmp_path


def run_setup(checkout, *arguments):
    command = [sys.executable, "setup.py", *arguments]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_library_that_cannot_be_built_leaves_the_reason(checkout):
    """The environment of the tests has no compiler; installation goes on without the library."""
    (checkout / "moe_jax/native/libmoe_jax.so").write_text("of an older version")
    run_setup(checkout, "build_ext", "--inplace")
    assert "No module named ziglang" in (checkout / "moe_jax/native/libmoe_jax.txt").read_text()
    assert not (checkout / "moe_jax/native/libmoe_jax.so").exists()


@pytest.mark.parametrize(
    ("machine", "processors"), [("x86_64", {"x86_64_v2", "x86_64_v3", "x86_64_v4"}), ("aarch64", set())]
)
def test_a_wheel_is_compiled_for_the_platform_of_its_name(checkout, machine, processors):
    """Also on another machine, and for every Python. A compiler that keeps its command lines stands for Zig."""
    (checkout / "ziglang").mkdir()
    (checkout / "ziglang/__main__.py").write_text(COMPILER)
    run_setup(checkout, "bdist_wheel", "--plat-name", f"manylinux_2_17_{machine}")
    (wheel,) = (checkout / "dist").iterdir()
    assert wheel.name == f"moe_jax-0.1.0-py3-none-manylinux_2_17_{machine}.whl"
    commands = [line.split() for line in (checkout / "commands").read_text().splitlines()]
    assert {command[command.index("-target") + 1] for command in commands} == {f"{machine}-linux-gnu.2.17"}
    assert {word.removeprefix("-mcpu=") for line in commands for word in line if word.startswith("-mcpu")} == processors
    with ZipFile(wheel) as files:
        assert files.read("moe_jax/native/libmoe_jax.so") == b"compiled"


def test_a_layer_on_it_agrees_with_the_definition(capsys):
    """The check that is run with every version of JAX; here with this one."""
    check.main()
    seen = json.loads(capsys.readouterr().out)
    assert seen["library"] == str(library.LIBRARY)
    assert seen["error"] <= TOLERANCE
