"""Executes notebooks from top to bottom and keeps their outputs, without what depends on the machine.

python notebooks/refresh.py                                    # all
python notebooks/refresh.py notebooks/01_quickstart.ipynb      # one
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh(path: Path) -> None:
    """Executes a notebook in a fresh kernel, in an empty folder, and writes it back; a cell that fails raises."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources=resources,
        ).execute()
    notebook.metadata = METADATA
    nbformat.write(notebook, path)


if __name__ == "__main__":
    # The kernel finds this checkout's moe_jax, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent.resolve()), os.environ.get("PYTHONPATH")]))
    for argument in sys.argv[1:] or sorted(HERE.glob("*.ipynb")):
        refresh(Path(argument))
