"""Array arguments: masks and indices of any integer type become the types that kernels read."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.configuration import require

Function = TypeVar("Function", bound=Callable[..., Any])


def typed(function: Function) -> Function:
    """Converts the arrays that a function is called with to the types of its annotations.

    An argument annotated `Bool[...]` becomes bool: of integers all but 0 are true. One annotated `Int[...]` becomes
    int32. Other arguments stay as they are.

    Raises:
      ConfigError: a mask or an index of another type, at the call; the message names the argument.
    """
    signature = inspect.signature(function)
    converters = {name: _converter(parameter.annotation) for name, parameter in signature.parameters.items()}
    converters = {name: converter for name, converter in converters.items() if converter is not None}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, converter in converters.items():
            if bound.arguments.get(name) is not None:
                bound.arguments[name] = converter(name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return call


def as_mask(name: str, x: Any) -> Any:
    """Returns an array of bool or integers as bool; raises ConfigError that names it for another type."""
    x = x if hasattr(x, "dtype") else np.asarray(x)
    integers = jnp.issubdtype(x.dtype, jnp.integer)
    require(integers or x.dtype == bool, f"type of {name}", str(x.dtype), "bool, or integers with 0 for false")
    return x != 0 if integers else x


def as_index(name: str, x: Any) -> Any:
    """Returns an array of integers as int32.

    Raises:
      ConfigError: the array has another type, or values that int32 cannot hold; the message names it. Values that are
        traced are not known, and must fit.
    """
    x = x if hasattr(x, "dtype") else np.asarray(x)
    require(jnp.issubdtype(x.dtype, jnp.integer), f"type of {name}", str(x.dtype), "integers")
    if x.size and not np.can_cast(x.dtype, np.int32) and not isinstance(x, jax.core.Tracer):
        for extreme in (int(x.min()), int(x.max())):
            require(-(2**31) <= extreme < 2**31, name, extreme, "integers from -2**31 to 2**31 - 1")
    return x if x.dtype == jnp.int32 else x.astype(jnp.int32)


def _converter(annotation: Any) -> Callable[[str, Any], Any] | None:
    """Returns the conversion that jaxtyping's annotation asks for, also of an optional array; None for none."""
    for option in (annotation, *typing.get_args(annotation)):
        # Of `Shaped[...]`, which takes any type, no list.
        listed = getattr(option, "dtypes", ())
        types = set(listed) if isinstance(listed, tuple | list) else set()
        if types and types <= {"bool", "bool_"}:
            return as_mask
        if types and all(kind.startswith(("int", "uint")) for kind in types):
            return as_index
    return None
