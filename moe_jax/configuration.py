"""Nested dictionaries as typed, frozen dataclasses; errors name the field, the value and the accepted values."""

import ast
import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

Config = TypeVar("Config")

KIND = "kind"
"""The key that names the kind of a tagged union in a dictionary."""


LONGEST_VALUE = 200
"""Characters of a value that a message shows."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for a person to act on.

    Line ends and whatever else has no picture, as in the name of a file, are written as in Python: `\\n`.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(x if x.isprintable() else repr(x)[1:-1] for x in message))

    def within(self, path: str) -> "ConfigError":
        """Returns the same error with `path` before the field that its message begins with."""
        return ConfigError(_join(path, str(self)))


@contextlib.contextmanager
def errors_within(path: str) -> Iterator[None]:
    """Puts `path` before the field of a ConfigError that the block raises."""
    try:
        yield
    except ConfigError as error:
        raise error.within(path) from error


def require(condition: bool, field: str, value: Any, accepted: str) -> None:
    """Raises ConfigError unless `condition` holds, saying that `field` has `value` and what would be `accepted`."""
    if not condition:
        raise ConfigError(f"{field} is {_shown(value)}; accepted: {accepted}")


def _shown(value: Any) -> str:
    """Returns a value as it is written in Python, cut off where it is long."""
    return cut_off(repr(value))


def cut_off(text: str) -> str:
    """Cuts off a text for a message where it is long, and says how long it is."""
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text):,} characters)"


def require_name(name: str, known: Sequence[str] | Mapping[str, Any], field: str) -> None:
    """Raises ConfigError unless `name` is one of `known`, suggesting the nearest."""
    if name not in known:
        raise ConfigError(f"{field} is {name!r}; accepted: {', '.join(sorted(known))}{_nearest(str(name), known)}")


def alternatives(names: Sequence[str]) -> str:
    """Joins names for an error message: "'a', 'b' or 'c'"."""
    *most, last = map(repr, names)
    return f"{', '.join(most)} or {last}" if most else last


@dataclasses.dataclass(frozen=True, eq=False)
class Kinds:
    """A tagged union: the dataclasses that one field may hold, each under a name.

    A field has it as `Annotated[Base, Kinds(...)]`. In a dictionary the value is a mapping whose `kind` is the name and
    whose other keys are the fields; or the name alone, for the defaults.

    Attributes:
      by_name: the dataclasses.
      default: the kind of a mapping that names none; None requires a name.
    """

    by_name: Mapping[str, type]
    default: str | None = None

    def name_of(self, value: Any) -> str:
        """Returns the name of the kind that `value` is an instance of."""
        return next(name for name, kind in self.by_name.items() if type(value) is kind)

    def make(self, value: Any, path: str) -> Any:
        """Returns a value of one of the kinds from a name, a mapping, or a value that is one already.

        Raises:
          ConfigError: an unknown name (with the nearest known one), or fields that the kind does not have.
        """
        if type(value) in self.by_name.values():
            return value
        if isinstance(value, str):
            value = {KIND: value}
        accepted = f"a name or a mapping with {KIND}: {', '.join(sorted(self.by_name))}"
        require(isinstance(value, Mapping), path, value, accepted)
        name = value.get(KIND, self.default)
        require(name is not None, _join(path, KIND), None, ", ".join(sorted(self.by_name)))
        require_name(str(name), self.by_name, path)
        fields = {key: item for key, item in value.items() if key != KIND}
        return build(self.by_name[name], fields, path)


def lists_to_tuples(config: Any) -> None:
    """Replaces lists in the fields of a frozen dataclass, where they are written by hand, so that it can be hashed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            object.__setattr__(config, field.name, tuple(value))


class Required:
    """The value of a field that a configuration file leaves open, for --set to give."""

    def __repr__(self) -> str:
        return "a required placeholder"


REQUIRED = Required()


def build(kind: type[Config], values: Mapping[str, Any], path: str = "") -> Config:
    """Builds the dataclass `kind` from nested `values`, refusing unknown fields and wrong types.

    Args:
      kind: a dataclass. A field may be a dataclass, `Annotated[..., Kinds]`, `X | None`, `tuple[X, ...]`,
        `Mapping[str, X]`, `Literal[...]` or a plain type.
      values: the values of the fields, mappings for fields that are dataclasses; a field left out keeps its default.
      path: dotted name of this object within the whole configuration. Checks of `kind` name bare fields; it is put
        before them.

    Raises:
      ConfigError: an unknown field (with the nearest known one), a missing one, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = _hints(kind)
    converted = check_values(hints, values, path)
    for name, field in fields.items():
        if _default(field) is dataclasses.MISSING and name not in values:
            raise ConfigError(f"{_join(path, name)} is missing; accepted: a value of type {_describe(hints[name])}")
    with errors_within(path):
        return kind(**converted)


def check_values(hints: Mapping[str, Any], values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Converts `values` to the types of `hints`; raises ConfigError for an unknown name or a wrong type."""
    for name in values:
        if name not in hints:
            accepted = ", ".join(hints) or "none"
            raise ConfigError(f"{_join(path, name)} is not a field; accepted: {accepted}{_nearest(str(name), hints)}")
    return {name: _convert(hints[name], value, _join(path, name)) for name, value in values.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """Inverts `build`, in JSON's types."""
    return _fields_to_dict(config, _kinds_of_fields(type(config)), skip_defaults=False)


def differences(config: Any) -> dict[str, Any]:
    """Returns what `build` needs to make `config` again: as `to_dict`, without the fields that have their defaults.

    A field that is added later with a default changes no such dictionary, so that it can be an identity.
    """
    return _fields_to_dict(config, _kinds_of_fields(type(config)), skip_defaults=True)


def unequal_fields(ours: Any, theirs: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Lists where two nested dictionaries differ: path and both values; a missing value is None."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            unequal
            for key in keys
            for unequal in unequal_fields(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if ours == theirs else [(path, ours, theirs)]


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Applies `key.subkey=value` assignments to a nested dictionary and returns a new one.

    Values are read as Python literals where they are one (`3`, `1e-3`, `(1, 3)`, `None`), else as text. A subkey of a
    list is an index (`variants.0.layers`); a subkey of a text keeps it as the kind (`router.num_groups` of the router
    `deepseek`). `build` checks whether a key exists and takes the value.
    """
    result = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set is {assignment!r}; accepted: key=value, for example optimizer.learning_rate=1e-3")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            value = text
        *parents, last = key.split(".")
        node: Any = result
        for depth, parent in enumerate(parents):
            slot = _slot(node, parent, ".".join(parents[:depth]))
            below = node[slot] if isinstance(node, list) else node.get(slot)
            if isinstance(below, str):
                below = {KIND: below}
            node[slot] = below if isinstance(below, dict | list) else {}
            node = node[slot]
        node[_slot(node, last, ".".join(parents))] = value
    return result


def _slot(node: dict[str, Any] | list[Any], key: str, path: str) -> Any:
    """Returns `key`, or for a list the index that it is."""
    if isinstance(node, dict):
        return key
    exists = key.isdecimal() and int(key) < len(node)
    require(exists, f"--set {path}", key, f"an index below {len(node)}")
    return int(key)


def _hints(kind: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in hints.items() if name in names}


def _default(field: dataclasses.Field) -> Any:
    """Returns a field's default; dataclasses.MISSING where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _kinds_in(hint: Any) -> Kinds | None:
    """Finds the tagged union within a type: the type itself, an optional one, or a tuple of them."""
    if typing.get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Kinds)), None)
    return next(filter(None, map(_kinds_in, typing.get_args(hint))), None)


def _kinds_of_fields(kind: type) -> dict[str, Kinds | None]:
    return {name: _kinds_in(hint) for name, hint in _hints(kind).items()}


def _fields_to_dict(config: Any, kinds: Mapping[str, Kinds | None], skip_defaults: bool) -> dict[str, Any]:
    return {
        field.name: _plain(getattr(config, field.name), kinds[field.name], skip_defaults)
        for field in dataclasses.fields(config)
        if not (skip_defaults and getattr(config, field.name) == _default(field))
    }


def _plain(value: Any, kinds: Kinds | None, skip_defaults: bool) -> Any:
    if dataclasses.is_dataclass(value):
        fields = _fields_to_dict(value, _kinds_of_fields(type(value)), skip_defaults)
        return fields if kinds is None else {KIND: kinds.name_of(value)} | fields
    if isinstance(value, Mapping):
        return {key: _plain(item, kinds, skip_defaults) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, kinds, skip_defaults) for item in value]
    return value


def _convert(hint: Any, value: Any, path: str, or_none: str = "") -> Any:
    """Converts a value to the type of a field; `or_none` ends a message about a field that may also be None."""
    require(value is not REQUIRED, path, value, f"{_describe(hint)}, by --set {path}=VALUE")
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        none = isinstance(value, str) and value.lower() in ("null", "none", "nil", "~")
        return _convert(inner, value, path, ", or None" + ("; did you mean None?" if none else ""))
    if origin is Annotated:
        kinds = _kinds_in(hint)
        return _convert(arguments[0], value, path) if kinds is None else kinds.make(value, path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {_shown(value)}; accepted: a mapping of {hint.__name__}'s fields{or_none}")
        return build(hint, value, path)
    if origin is typing.Literal:
        require(value in arguments, path, value, ", ".join(map(repr, arguments)) + or_none)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {_shown(value)}; accepted: {_describe(hint)}{or_none}")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{path} is {_shown(value)}; accepted: {_describe(hint)}{or_none}")
    if isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, _join(path, key)) for key, item in value.items()}
    return value


def _copy(values: Any) -> Any:
    """Copies nested mappings and sequences as dictionaries and, where they hold a mapping, lists."""
    if isinstance(values, Mapping):
        return {key: _copy(value) for key, value in values.items()}
    if isinstance(values, list | tuple) and any(isinstance(value, Mapping) for value in values):
        return [_copy(value) for value in values]
    return values


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
