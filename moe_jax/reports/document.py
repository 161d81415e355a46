"""Parts that all reports have: figures on disk, and the provenance of their numbers."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from moe_jax.results.rows import Row
from moe_jax.runtime.files import write_whole


def provenance(rows: Sequence[Row], command: str) -> str:
    """Where the numbers come from; what differs between rows is listed in full."""
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
    return f"{host['cpu']}, {host['cores']} cores; JAX on {host['platform']}, {host['devices']} x {host['device']}"


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_whole(path, content.getvalue())
