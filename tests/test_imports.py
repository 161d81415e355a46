"""Imports go one way, in no circle, and no file is too long to read."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 400

# From the top: a room imports from those below it, never from one above.
ROOMS = (
    "experiments",
    "configs",
    "moe_jax.__main__",
    "moe_jax.cli",
    "moe_jax.commands",
    "moe_jax.study",
    "moe_jax.analysis",
    "moe_jax.reports",
    "moe_jax.claims",
    "moe_jax.results",
    "moe_jax.evaluation",
    "moe_jax.statistics",
    "moe_jax.training",
    "moe_jax.checkpoints",
    "moe_jax.accounting",
    "moe_jax.models",
    "moe_jax.layers",
    "moe_jax.experts",
    "moe_jax.routing",
    "moe_jax.data",
    "moe_jax.native",
    "moe_jax.runtime",
    "moe_jax.configuration",
    "moe_jax",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


FILES = {module_name(path): path for path in python_files("moe_jax", "experiments", "configs")}


def imported(path):
    """The modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            # Of a package, a name is a module or what its `__init__` defines.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found & FILES.keys()


IMPORTS = {module: imported(path) for module, path in FILES.items()}


def room(module):
    """The place in ROOMS of the room that a module lies in."""
    return next(place for place, name in enumerate(ROOMS) if f"{module}.".startswith(f"{name}."))


def test_every_room_has_a_place():
    packages = {module for module in FILES if module.count(".") <= 1 and module.startswith("moe_jax")}
    assert packages == {name for name in ROOMS if name.startswith("moe_jax")}


def test_no_module_imports_from_a_room_above_it():
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in sorted(others)
        if room(other) < room(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    try:
        graphlib.TopologicalSorter(IMPORTS).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", ["moe_jax", "experiments", "configs", "tests"])
def test_no_file_is_too_long(folder):
    lengths = {path.relative_to(ROOT): path.read_text(encoding="utf-8").count("\n") for path in python_files(folder)}
    long = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > LONGEST]
    assert not long, "\n".join(long)
