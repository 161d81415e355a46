"""From nested dictionaries to typed, frozen dataclasses; errors name the field, the value and what is accepted."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for a person to act on."""


def require(condition: bool, field: str, value: Any, accepted: str) -> None:
    """Raises ConfigError unless `condition` holds, saying that `field` has `value` and what would be `accepted`."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; accepted: {accepted}")


def require_name(name: str, known: Sequence[str] | Mapping[str, Any], field: str) -> None:
    """Raises ConfigError unless `name` is one of `known`, suggesting the nearest."""
    if name not in known:
        raise ConfigError(f"{field} is {name!r}; accepted: {', '.join(sorted(known))}{_nearest(str(name), known)}")


def build(kind: type[Config], values: Mapping[str, Any], path: str = "") -> Config:
    """Builds the dataclass `kind` from nested `values`, refusing unknown fields and wrong types.

    Args:
      kind: a dataclass; a field may itself be a dataclass, `X | None`, `tuple[X, ...]`, `Literal[...]` or a plain type.
      values: what the fields get; fields left out keep their defaults. A mapping for a field that is a dataclass.
      path: dotted name of this object within the whole configuration, for messages.

    Raises:
      ConfigError: an unknown field (with the nearest known one), a missing one, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in fields}
    converted = check_values(hints, values, path)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{_join(path, name)} is missing; accepted: a value of type {_describe(hints[name])}")
    return kind(**converted)


def check_values(hints: Mapping[str, Any], values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The `values` converted to the types of `hints`; raises ConfigError for an unknown name or a wrong type."""
    for name in values:
        if name not in hints:
            accepted = ", ".join(hints) or "none"
            raise ConfigError(f"{_join(path, name)} is not a field; accepted: {accepted}{_nearest(str(name), hints)}")
    return {name: _convert(hints[name], value, _join(path, name)) for name, value in values.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `build`, in JSON's types."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Applies `key.subkey=value` assignments to a nested dictionary and returns a new one.

    Values are read as Python literals where they are one (`3`, `1e-3`, `(1, 3)`, `None`), else as text. Whether a key
    exists and takes the value is for `build` to say.
    """
    result = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set is {assignment!r}; accepted: key=value, for example optimizer.learning_rate=1e-3")
        *parents, last = key.split(".")
        node = result
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        try:
            node[last] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            node[last] = text
    return result


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner, value, path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; accepted: a mapping of {hint.__name__}'s fields")
        return build(hint, value, path)
    if origin is typing.Literal:
        require(value in arguments, path, value, ", ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; accepted: {_describe(hint)}")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{path} is {value!r}; accepted: {_describe(hint)}")
    return dict(value) if origin is dict else value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _describe(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and typing.get_origin(hint) is None
        else str(hint).replace("typing.", "")
    )
