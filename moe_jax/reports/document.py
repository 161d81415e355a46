"""One report in Markdown with its figures, and the paragraph on the origin of its numbers."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from moe_jax.results.notes import read_notes
from moe_jax.results.rows import Row
from moe_jax.runtime.files import write_whole


class Document:
    """A report that is written when all of it is there.

    Args:
      title: its heading.
    """

    def __init__(self, title: str) -> None:
        self._blocks = [f"# {title}"]
        self._figures: dict[str, Figure] = {}

    def add(self, *blocks: str) -> None:
        """Adds paragraphs, lists, tables or headings; empty ones are left out."""
        self._blocks += filter(None, blocks)

    def add_figure(self, figure: Figure, name: str, description: str) -> None:
        """Adds a figure, to be written as PNG to `name` beside the report."""
        self._figures[name] = figure
        self.add(f"![{description}]({name})")

    def add_notes(self, directory: Path) -> None:
        """Adds what a person wrote about the table of results in `directory`, if anything; see `read_notes`."""
        notes = read_notes(directory)
        if notes:
            self.add("## Notes", notes)

    def text(self) -> str:
        """Returns the report in Markdown."""
        return "\n\n".join(self._blocks) + "\n"

    def write(self, directory: Path) -> Path:
        """Writes the figures and `README.md` into `directory`, which is made if missing; returns the report's path."""
        for name, figure in self._figures.items():
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=130)
            write_whole(directory / name, content.getvalue())
        path = directory / "README.md"
        write_whole(path, self.text())
        return path


def conditions(rows: Sequence[Row]) -> str:
    """Returns a sentence on the models and their training; of a size that differs between rows, all values."""
    models, data = ([row["config"][part] for row in rows] for part in ("model", "data"))
    stacks = " in each stack" if any(model.get("architecture") == "encoder_decoder" for model in models) else ""
    return (
        f"Each model has {_values(models, 'num_layers')} layers{stacks} of width {_values(models, 'model_dim')} and "
        f"trains for {_values([row['config'] for row in rows], 'steps')} steps of {_values(data, 'batch_size')} "
        f"sequences of {_values(data, 'sequence_length')} tokens."
    )


def _values(records: Iterable[Mapping[str, Any]], field: str) -> str:
    """Lists the values of a field, each once, in order."""
    return " or ".join(f"{value:,}" for value in sorted({record[field] for record in records}))


def provenance(rows: Sequence[Row], command: str) -> str:
    """Returns a list of the corpus, seeds, code, machine and command that gave the rows; all that differ are named."""
    corpus = rows[0]["corpus"]
    facts = {
        "corpus": f"{corpus['name']}, digest `{corpus['digest']}`",
        "seeds": ", ".join(map(str, sorted({row["seed"] for row in rows}))),
        "git revision": _distinct(f"`{row['git_revision']}`" for row in rows),
        "versions": _distinct(", ".join(map(" ".join, row["versions"].items())) for row in rows),
        "host": _distinct(_host(row["host"]) for row in rows),
        "last run finished": max(row["finished"] for row in rows),
        "command": command and f"`{command}`",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _host(host: dict[str, Any]) -> str:
    cores = "1 core" if host["cores"] == 1 else f"{host['cores']} cores"
    return f"{host['cpu']}, {cores} for each run; JAX on {host['platform']}, {host['devices']} x {host['device']}"


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
