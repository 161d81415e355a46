"""Every notebook runs from top to bottom, and is committed with what it showed."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# A home, a temporary or a system folder, on any system.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|tmp|var|root|opt|usr|work|mnt|private)/|\b[A-Z]:\\\\?\w")

# Less of the same than a reader gets: steps of training, batches, values of a curve. Every cell runs.
SHORTER = {
    "01_quickstart": {"steps=80": "steps=30"},
    "02_routing_algorithms": {
        "factors = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0]": "factors = [0.25, 1.0, 4.0]",
        "STEPS = 32, 8, 16, 300": "STEPS = 32, 8, 16, 30",
    },
    "03_dense_against_switch": {
        "steps=300": "steps=50",
        "checkpoint_every=300": "checkpoint_every=50",
        "batch_size=32": "batch_size=8",
        '"group_size": 4096': '"group_size": 1024',
        "eval_batches=8": "eval_batches=2",
        "validation_batches(16)": "validation_batches(4)",
    },
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_it_runs_from_top_to_bottom_and_leaves_no_file(path, tmp_path, monkeypatch):
    """A cell that fails raises here, with its traceback; jax has one device, as for a reader."""
    monkeypatch.setenv("XLA_FLAGS", re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(path, as_version=4)
    committed = [shows_something(cell) for cell in code_cells(notebook)]
    shorten(notebook, SHORTER.get(path.stem, {}))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert [shows_something(cell) for cell in code_cells(notebook)] == committed
    assert list(tmp_path.iterdir()) == []


@each_notebook
def test_it_is_committed_as_executed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert shows_something(cell) == asks_to_show(cell.source), (
            f"{cell.source}\n(python notebooks/refresh.py executes it anew)"
        )
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert not ABSOLUTE_PATH.search(text_of(output)), text_of(output)
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))


@each_notebook
def test_its_metadata_say_nothing_of_the_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("text", ["see /home/me/x", "'/tmp/abc'", "(/Users/me/x)", "C:\\\\Users"])
def test_absolute_paths_are_found(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["https://arxiv.org/abs/2101.03961", "load / even share", "runs/tmp/x", "m / root / s"]
)
def test_other_slashes_are_no_paths(text):
    assert not ABSOLUTE_PATH.search(text)


def shorten(notebook, settings):
    """Replaces each text of `settings`, which stands once in the code, by its value."""
    for text, shorter in settings.items():
        (cell,) = (cell for cell in code_cells(notebook) if text in cell.source)
        assert cell.source.count(text) == 1
        cell.source = cell.source.replace(text, shorter)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def shows_something(cell) -> bool:
    """Whether anything but notices on stderr, such as the preparation of a corpus, came out."""
    return any(output.get("name") != "stderr" for output in cell.outputs)


def asks_to_show(source: str) -> bool:
    """Whether a cell prints, displays, or ends in an expression."""
    tree = ast.parse("\n".join("" if line.startswith("%") else line for line in source.splitlines()))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return bool(tree.body) and (
        isinstance(tree.body[-1], ast.Expr)
        or any(isinstance(function, ast.Name) and function.id in ("print", "display") for function in calls)
    )


def text_of(output) -> str:
    """All text of an output, pictures left out."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return "\n".join([output.get("text", ""), *map(str, data.values())])
