"""Declared parameters: shape and division of each, for the module that makes it, for accounting and for the mesh."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Parameter(NamedTuple):
    """Shape of one parameter, and how a mesh divides it.

    Attributes:
      shape: its dimensions.
      axes: for each dimension the mesh axis (`fsdp`, `expert`, `tensor`) that divides it; None leaves it whole.
      multiplies: whether it is a matrix that tokens are multiplied by, which costs FLOPs; false for biases and scales.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    multiplies: bool = True

    @property
    def size(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    def stacked(self, copies: int) -> "Parameter":
        """Returns `copies` of the parameter as one, with a leading axis that no mesh divides."""
        return self._replace(shape=(copies, *self.shape), axes=(None, *self.axes))


# Parameters by their path within the layer, as in the tree of parameters: "query/kernel".
Parameters = Mapping[str, Parameter]


def count(parameters: Parameters) -> int:
    """Counts the elements of all `parameters`."""
    return sum(parameter.size for parameter in parameters.values())


def count_multiplied(parameters: Parameters) -> int:
    """Counts the elements of the matrices among `parameters`; a token costs two operations for each."""
    return sum(parameter.size for parameter in parameters.values() if parameter.multiplies)


def within(name: str, parameters: Parameters) -> dict[str, Parameter]:
    """Returns `parameters` as those of a part called `name` of a larger layer."""
    return {f"{name}/{path}": parameter for path, parameter in parameters.items()}
