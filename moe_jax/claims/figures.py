"""Figures that papers print, written once in tables and referred to elsewhere.

A table file is TOML: for each study a table whose `values` are figures by model, and whose `others` are figures of
further measures by model. `{STUDY/MODEL}` and `{STUDY/MEASURE/MODEL}` in a text stand for them. `{STUDY/MODEL/1}` is
the first of several figures with slashes between them.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.configuration import ConfigError, require_name

BETWEEN = " / "
_REFERENCE = re.compile(r"\{([^{}]+)\}")


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a file of tables, by study, with every reference to a figure replaced by it.

    Raises:
      ConfigError: a reference to a figure that no table has; it names the file.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    figures = flat_figures(tables)

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: replaced(item) for name, item in value.items()}
        return refer(value, figures)

    try:
        return replaced(tables)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def flat_figures(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the figures of tables by what a text refers to them as."""
    found: dict[str, str] = {}
    for study, table in tables.items():
        by_path = {study: table["values"]}
        by_path |= {f"{study}/{measure}": values for measure, values in table.get("others", {}).items()}
        for path, values in by_path.items():
            for model, value in values.items():
                found[f"{path}/{model}"] = value
                if BETWEEN in value:
                    parts = enumerate(value.split(BETWEEN), start=1)
                    found |= {f"{path}/{model}/{place}": part for place, part in parts}
    return found


def refer(text: str, figures: Mapping[str, str], within: str = "") -> str:
    """Replaces each `{REFERENCE}` in a text by the figure that it stands for.

    Args:
      text: with references, or without.
      figures: as `flat_figures` gives them.
      within: the path that a reference may leave out, such as a study.

    Raises:
      ConfigError: there is no such figure.
    """

    def figure(match: re.Match[str]) -> str:
        near = f"{within}/{match[1]}"
        if near in figures:
            return figures[near]
        there = [name.removeprefix(f"{within}/") for name in figures if name.startswith(f"{within}/")]
        if match[1] not in figures:
            require_name(match[1], there or figures, "figure")
        return figures[match[1]]

    return _REFERENCE.sub(figure, text)
