"""Wheels that need no compiler, for every processor that the native library is built for; `make wheels` runs this.

    python -m experiments.native.wheels   # writes dist/: the source distribution, and a wheel for each of MACHINES

Zig compiles for all of them on any machine. `auditwheel` reads what each wheel's library asks of the system, and the
command fails if that is more than the wheel's name says. The wheel for aarch64 was run once, by hand: `check.py` in
QEMU 7.2's user mode with Python 3.11 and JAX 0.10.2, largest error 4.1e-7.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
MACHINES = ("x86_64", "aarch64")
# With the version of the C library that setup.py compiles for.
PLATFORM = "manylinux_2_17"
LIBRARY = "moe_jax/native/libmoe_jax.so"


class WheelError(Exception):
    """Raised when a wheel is not what its name says."""


def main() -> None:
    """Builds and checks the wheels, and prints what auditwheel says."""
    shutil.rmtree(DIST, ignore_errors=True)
    run_python("uv", "build", "--sdist", "--out-dir", DIST, ROOT)
    (source,) = DIST.glob("*.tar.gz")
    for machine in MACHINES:
        name = f"--config-setting=--build-option=--plat-name={PLATFORM}_{machine}"
        run_python("uv", "build", "--wheel", "--out-dir", DIST, name, source)
    for wheel in sorted(DIST.glob("*.whl")):
        check_contents(wheel)
        print(run_python("auditwheel", "show", wheel))
        check_name(wheel.name, json.loads(run_python("auditwheel", "show", "--json", wheel)))
    for path in sorted(DIST.glob("moe_jax-*")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def check_contents(wheel: Path) -> None:
    """Checks that a wheel has the native library.

    Raises:
      WheelError: it has none, because it could not be compiled; with the compiler's message.
    """
    with zipfile.ZipFile(wheel) as files:
        if LIBRARY not in files.namelist():
            reason = Path(LIBRARY).with_suffix(".txt").as_posix()
            raise WheelError(f"{wheel.name} has no {LIBRARY}: {files.read(reason).decode()}")


def check_name(name: str, audit: Mapping[str, Any]) -> None:
    """Compares a wheel's file name with what auditwheel found in it.

    Raises:
      WheelError: the wheel is for one Python only, or needs a newer or another system than its name says.
    """
    pattern = r"manylinux_(\d+)_(\d+)_(\w+)"
    said, needed = re.search(rf"-py3-none-{pattern}\.whl$", name), re.fullmatch(pattern, audit["overall_tag"])
    if not said:
        raise WheelError(f"{name} is not for every Python on Linux; its name should end with py3-none-manylinux_...")
    if not needed or needed[3] != said[3] or tuple(map(int, needed.groups()[:2])) > tuple(map(int, said.groups()[:2])):
        raise WheelError(f"{name} needs {audit['overall_tag']}, which its name does not say")
    if audit["external_libs"]:
        raise WheelError(f"{name} needs libraries that not every system has: {', '.join(audit['external_libs'])}")


def run_python(*arguments: str | Path) -> str:
    """Runs a module of this interpreter and returns its output.

    Raises:
      WheelError: it failed; with the end of its messages.
    """
    return run(sys.executable, "-m", *arguments)


def run(*command: str | Path, folder: Path | None = None, variables: Mapping[str, str] | None = None) -> str:
    """Runs a command, in `folder` and with environment `variables` besides this process's, and returns its output.

    Raises:
      WheelError: it failed; with the end of its messages.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode:
        raise WheelError(f"{' '.join(words)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        main()
    except WheelError as error:
        sys.exit(str(error))
