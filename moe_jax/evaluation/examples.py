"""Questions for a language model: contexts and their choices, from lines of JSON or a prepared TFDS data set."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.configuration import ConfigError, cut_off, require
from moe_jax.data.corpora import prepared_builder
from moe_jax.data.documents import is_encodable
from moe_jax.runtime.files import json_records


@dataclasses.dataclass(frozen=True)
class Example:
    """A question: a context and its possible continuations.

    Attributes:
      context: the text before the answer, which may be empty.
      choices: the possible continuations, joined to the context as they are, so a blank between the two belongs to one
        of them. A single choice makes a cloze: the model has to find it.
      answer: index of the right choice.
    """

    context: str
    choices: tuple[str, ...]
    answer: int = 0

    @property
    def solved(self) -> str:
        """The context followed by the right choice."""
        return self.context + self.choices[self.answer]


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields of a record that hold the parts of an example.

    Attributes:
      context: field with the context.
      choices: field that lists the choices, or several fields with one choice each.
      answer: field with the index of the right choice, from 0.
      target: field with the answer of a cloze; a record with it has no choices.
      join: text put between the context and a choice.
    """

    context: str = "context"
    choices: tuple[str, ...] = ("choices",)
    answer: str = "answer"
    target: str = "target"
    join: str = ""


DEFAULT_FIELDS = Fields()


def read_examples(task: str, fields: Fields = DEFAULT_FIELDS, split: str = "validation") -> list[Example]:
    """Reads the examples of a file or a data set, which are all multiple choice or all cloze.

    Args:
      task: path of a file of JSON lines (.jsonl), each {"context": text, "choices": [text, ...], "answer": index} or
        {"context": text, "target": text}; or tfds:NAME[/CONFIG], a data set on disk in TFDS's array_record format.
      fields: names of the fields, if others.
      split: split of a TFDS data set.

    Raises:
      ConfigError: no such file or data set, or it is empty; or a record is no such example. The message names the
        record by file and line, or by data set and number.
    """
    if task.startswith("tfds:"):
        records = _tfds_records(task, split)
    else:
        accepted = "a file of JSON lines that ends in .jsonl, tfds:NAME[/CONFIG], or corpus:NAME"
        require(task.endswith(".jsonl") and Path(task).is_file(), "TASK", task, accepted)
        records = json_records(Path(task))
    examples: list[Example] = []
    for where, record in records:
        example = example_from(record, fields, where)
        _require_same_kind(example, examples, where)
        examples.append(example)
    require(bool(examples), "TASK", task, "a task with at least one example")
    return examples


def spread(examples: Sequence[Example], count: int | None) -> list[Example]:
    """Selects at most `count` examples at equal distances; all of them if None."""
    require(count is None or count >= 1, "examples", count, "an integer of at least 1")
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]


def example_from(record: Any, fields: Fields, where: str) -> Example:
    """Makes an example of a record; raises ConfigError that names the place `where` the record is if it is none."""
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} is a {type(record).__name__}; accepted: a JSON object")
    context = _text(record, fields.context, where)
    if (fields.target in record) == any(name in record for name in fields.choices):
        raise ConfigError(
            f"{where} has the fields {cut_off(', '.join(map(str, record)))}; accepted: either {fields.target!r}, or "
            f"{', '.join(map(repr, fields.choices))} and {fields.answer!r}"
        )
    if fields.target in record:
        return Example(context, (fields.join + _text(record, fields.target, where, filled=True),))
    choices = _choices(record, fields, where)
    answer = _field(record, fields.answer, where)
    is_index = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)
    require(is_index, f"{where}: {fields.answer}", answer, f"the index of a choice, 0 to {len(choices) - 1}")
    return Example(context, tuple(fields.join + choice for choice in choices), answer)


def _choices(record: Mapping[str, Any], fields: Fields, where: str) -> list[str]:
    if len(fields.choices) > 1:
        return [_text(record, name, where, filled=True) for name in fields.choices]
    (name,) = fields.choices
    listed = _field(record, name, where)
    require(isinstance(listed, list) and len(listed) >= 2, f"{where}: {name}", listed, "a list of at least two texts")
    numbered = {f"{name}[{i}]": text for i, text in enumerate(listed)}
    return [_text(numbered, key, where, filled=True) for key in numbered]


def _text(record: Mapping[str, Any], name: str, where: str, filled: bool = False) -> str:
    """Returns a field that must be text that UTF-8 can encode, and not empty if `filled`."""
    value = _field(record, name, where)
    is_text = isinstance(value, str) and is_encodable(value)
    accepted = "a text that is not empty" if filled else "a text"
    require(is_text and (value != "" or not filled), f"{where}: {name}", value, accepted)
    return value


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ConfigError(f"{where}: {name} is missing; the record has the fields {cut_off(', '.join(record))}")
    return record[name]


def _require_same_kind(example: Example, examples: list[Example], where: str) -> None:
    """Raises ConfigError if one example is a cloze and another multiple choice; the number of choices may differ."""
    kinds = ["a cloze" if len(one.choices) == 1 else "multiple choice" for one in (example, *examples[:1])]
    if len(set(kinds)) > 1:
        raise ConfigError(f"{where} is {kinds[0]}; accepted: {kinds[1]}, like the examples before it")


def _tfds_records(task: str, split: str) -> Iterable[tuple[str, Any]]:
    builder = prepared_builder(task.removeprefix("tfds:"), "TASK", task)
    try:
        source = builder.as_data_source(split)
    except (ValueError, KeyError) as error:
        accepted = f"a split of {task}: {', '.join(builder.info.splits)}"
        raise ConfigError(f"split is {split!r}; accepted: {accepted}") from error
    for number in range(len(source)):
        where = f"{task}, example {number} of {split}"
        yield where, {name: _plain(value, where) for name, value in source[number].items()}


def _plain(value: Any, where: str) -> Any:
    """Converts a feature's value to JSON's types; leaves it as it is if there is none."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where} is {value[:60]!r}; accepted: text in UTF-8") from error
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
        return [_plain(item, where) for item in value] if isinstance(value, list) else _plain(value, where)
    return [_plain(item, where) for item in value] if isinstance(value, list) else value
