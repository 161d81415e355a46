"""Tables that commands print."""

from collections.abc import Sequence


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells, each column as wide as its widest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
