"""Segments: the layers of a stack as runs of a repeating pattern, each of which one scan can run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from moe_jax.models.layer_spec import LayerSpec


class Segment(NamedTuple):
    """A run of layers.

    Attributes:
      first: index of its first layer.
      pattern: the layers that repeat.
      repeats: number of times that they do.
    """

    first: int
    pattern: tuple[LayerSpec, ...]
    repeats: int

    def layers(self, block: int) -> list[int]:
        """Returns the indices of the layers that are the pattern's `block`, one for each repeat."""
        period = len(self.pattern)
        return [self.first + block + repeat * period for repeat in range(self.repeats)]


def find_segments(layers: Sequence[Any]) -> tuple[Segment, ...]:
    """Cuts layers into segments: at each place the pattern whose repeats cover most layers, the shortest of these.

    Layers that repeat nothing make a segment together: 3 dense and 58 sparse layers are two segments of one layer, and
    layers that alternate are one segment of two.
    """
    segments: list[Segment] = []
    first = 0
    while first < len(layers):
        period, repeats = _longest_run(layers[first:])
        pattern = tuple(layers[first : first + period])
        if repeats == 1 and segments and segments[-1].repeats == 1:
            before = segments.pop()
            segments.append(Segment(before.first, (*before.pattern, *pattern), 1))
        else:
            segments.append(Segment(first, pattern, repeats))
        first += period * repeats
    return tuple(segments)


def _longest_run(layers: Sequence[Any]) -> tuple[int, int]:
    """Finds the pattern at the start whose repeats cover most layers, as its length and number of repeats."""
    best = (1, 1)
    for period in range(1, len(layers) // 2 + 1):
        repeats = 1
        while layers[repeats * period : (repeats + 1) * period] == layers[:period]:
            repeats += 1
        if repeats > 1 and period * repeats > best[0] * best[1]:
            best = (period, repeats)
    return best
