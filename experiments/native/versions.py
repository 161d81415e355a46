"""The native library with every JAX that setup.py allows, installed from a wheel, a source distribution and a checkout.

    make versions   # experiments.native.wheels, then experiments.native.versions python3.11 python3.12 python3.13

Each interpreter gets an environment for each way of installing. In each of them, with each JAX that there is for the
interpreter, `check.py` compares a layer on the library with the definition. Installation compiles with the headers of
the newest jaxlib, whichever is installed, so the library is also compiled with the headers of each: all must give the
same file. `experiments/results/native.md` gets what was found.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from importlib.metadata import requires
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.version import Version

from experiments.native.wheels import DIST, LIBRARY, ROOT, WheelError, run, run_python
from moe_jax.reports.document import Document
from moe_jax.reports.tables import markdown_rows
from moe_jax.runtime.files import write_whole
from moe_jax.study.provenance import git_revision, host

REPORT = ROOT / "experiments/results/native.md"
CHECK = Path(__file__).with_name("check.py")
# What a layer imports beside JAX; moe_jax needs the rest for training and reports.
NEEDED = ("flax", "jaxtyping", "numpy")
TOLERANCE = 1e-5


class Found(NamedTuple):
    """A layer on the library: its Python, JAX and way of installing, its relative error, and the library's digest."""

    python: str
    jax: str
    flax: str
    way: str
    error: float
    digest: str


class Built(NamedTuple):
    """A library: the Python that compiled it, the release whose headers it was compiled with, and its digest."""

    python: str
    headers: str
    digest: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all combinations and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="an interpreter, 3.11 or later")
    found: list[Found] = []
    built: list[Built] = []
    for python in parser.parse_args(arguments).pythons:
        with tempfile.TemporaryDirectory() as folder:
            for result in check_python(python, Path(folder), {library.headers for library in built}):
                print(*result, flush=True)
                (found if isinstance(result, Found) else built).append(result)
    if len({result.digest for result in (*found, *built)}) > 1:
        raise WheelError("libraries differ by the headers or the Python that they were compiled with, see above")
    write_whole(REPORT, report(found, built))


def check_python(python: str, folder: Path, compiled: Collection[str]) -> Iterator[Found | Built]:
    """Installs moe_jax for an interpreter in every way, and checks each with every JAX that setup.py allows.

    Args:
      python: the interpreter.
      folder: an empty folder; environments are made there.
      compiled: releases whose headers the library has been compiled with.

    Raises:
      WheelError: a command failed, the library is not used, or a result is wrong.
    """
    (wheel,), (source,) = DIST.glob(f"*_{os.uname().machine}.whl"), DIST.glob("*.tar.gz")
    checkout = folder / "source"
    run("git", "clone", "--quiet", ROOT, checkout)
    # What uv has built it would take again, if it lay in the same place.
    source = Path(shutil.copy(source, folder))
    for way, arguments in {"wheel": [wheel], "sdist": [source], "checkout": ["--editable", checkout]}.items():
        run_python("uv", "venv", "--python", python, folder / way)
        run_python("uv", "pip", "install", "--python", folder / way, "--no-deps", *arguments)
    compiler = folder / "compiler"
    run_python("uv", "venv", "--python", python, compiler)
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    tools = [tool for tool in tools if not tool.startswith("jaxlib")]
    run_python("uv", "pip", "install", "--python", compiler, *tools)
    version = run(compiler / "bin/python", "-c", "import platform; print(platform.python_version())").strip()
    requirements = {read.name: read for read in map(Requirement, requires("moe_jax") or []) if not read.marker}
    for jax in releases(version, requirements["jax"]):
        packages = folder / jax
        needed = [f"jax=={jax}", *(str(requirements[name]) for name in NEEDED)]
        run_python("uv", "pip", "install", "--python", compiler, "--target", packages, *needed)
        for way in ("wheel", "sdist", "checkout"):
            place = checkout if way == "checkout" else folder / way
            yield _check(folder / way, packages, place, version, way)
        if jax not in compiled:
            yield Built(version, jax, _compile(compiler, packages, source))


def releases(python: str, jax: Requirement) -> list[str]:
    """Lists the releases of JAX that this version of Python can install and `jax` allows, oldest first."""
    there = []
    for name in ("jax", "jaxlib"):
        shown = run_python("pip", "index", "versions", "--python-version", python, "--only-binary", ":all:", name)
        listed = re.search(r"^Available versions: (.*)", shown, re.MULTILINE)
        there.append(set(listed[1].split(", ")) if listed else set())
    return sorted(jax.specifier.filter(there[0] & there[1]), key=Version)


def report(found: Sequence[Found], built: Sequence[Built]) -> str:
    """Returns the report in Markdown: a line for each Python and JAX, and what auditwheel says of the wheels."""
    ways = list(dict.fromkeys(result.way for result in found))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in found:
        lines.setdefault(result[:3], {})[result.way] = f"{result.error:.1e}"
    headers = ", ".join(library.headers for library in built)
    document = Document("The native library")
    document.add(
        f"`make versions` at revision {git_revision(ROOT)}, on {host()['cpu']}. The last columns are ways of "
        "installing: the wheel of `make wheels`, the source distribution, and a checkout, editable. "
        "With each, in an empty folder, a layer was run and differentiated that chose the library by itself; there was "
        "no warning. The numbers are its largest error, of values and gradients relative to the largest of each, "
        "against the definition in float32.",
        markdown_rows([["Python", "jax", "flax", *ways], *([*line, *lines[line].values()] for line in lines)], ()),
        f"The library was also compiled with the headers of each of jaxlib {headers}. It was the same file each time, "
        f"and that of every line: sha256 `{built[0].digest}`. So it does not matter that installation takes "
        "the headers of the newest jaxlib, and one wheel is for all lines.",
        "What `auditwheel show` says of the wheels, of which only that for this machine's processor was run:",
    )
    for wheel in sorted(DIST.glob("*.whl")):
        document.add(f"```\n{run_python('auditwheel', 'show', wheel).strip()}\n```")
    return document.text()


def _check(environment: Path, packages: Path, place: Path, python: str, way: str) -> Found:
    """Runs `check.py` with an environment's Python and `packages`, in an empty folder; the library is under `place`."""
    with tempfile.TemporaryDirectory() as empty:
        variables = {"PYTHONPATH": str(packages), "JAX_PLATFORMS": "cpu"}
        seen = json.loads(run(environment / "bin/python", "-P", CHECK, folder=Path(empty), variables=variables))
    library = Path(seen.pop("library"))
    if not library.is_relative_to(place):
        raise WheelError(f"the library at {library} was used, not that under {place}")
    if not seen["error"] <= TOLERANCE:
        raise WheelError(f"Python {python}, jax {seen['jax']}, {way}: the error is {seen['error']}")
    return Found(python, way=way, **seen)


def _compile(environment: Path, packages: Path, source: Path) -> str:
    """Compiles with the headers of `packages`, and returns the library's digest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "uv",
            "build",
            "--wheel",
            "--python",
            environment,
            "--no-build-isolation",
            "--out-dir",
            folder,
            source,
        ]
        run(sys.executable, "-m", *command, variables={"PYTHONPATH": str(packages)})
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as files:
            return sha256(files.read(LIBRARY)).hexdigest()


if __name__ == "__main__":
    try:
        main()
    except WheelError as error:
        sys.exit(str(error))
