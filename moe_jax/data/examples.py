"""Questions to ask a language model: texts and how they may go on, from lines of JSON or a prepared TFDS data set."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.configuration import ConfigError, require
from moe_jax.data.corpora import prepared_builder
from moe_jax.runtime.files import json_records


@dataclasses.dataclass(frozen=True)
class Example:
    """A text and how it may go on.

    Attributes:
      context: the text, which may be empty.
      choices: what may follow it, letter by letter: where a blank is to stand between the two, it is in one of them. A
        single choice is a cloze: the text to be found.
      answer: the index of the right choice.
    """

    context: str
    choices: tuple[str, ...]
    answer: int = 0

    @property
    def solved(self) -> str:
        """The text with the right choice."""
        return self.context + self.choices[self.answer]


@dataclasses.dataclass(frozen=True)
class Fields:
    """Where a record has the parts of an example.

    Attributes:
      context: name of the field with the text.
      choices: of the one that lists the choices, or of several fields with a choice each.
      answer: of the one with the index of the right choice, from 0.
      target: of the one with the text to be found; a record with it is a cloze, and has no choices.
      join: put between the text and what follows it.
    """

    context: str = "context"
    choices: tuple[str, ...] = ("choices",)
    answer: str = "answer"
    target: str = "target"
    join: str = ""


DEFAULT_FIELDS = Fields()


def read_examples(task: str, fields: Fields = DEFAULT_FIELDS, split: str = "validation") -> list[Example]:
    """The examples of a file or a data set, all of them multiple choice or all of them cloze.

    Args:
      task: path of a file of JSON lines (.jsonl), each {"context": text, "choices": [text, ...], "answer": index} or
        {"context": text, "target": text}; or tfds:NAME[/CONFIG], a data set on disk in TFDS's array_record format.
      fields: what the parts are called there, if anything else.
      split: of a TFDS data set.

    Raises:
      ConfigError: there is nothing of this name, or nothing in it; or a record, which the message names by file and
        line, or by data set and number, is not such an example.
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
    require(bool(examples), "TASK", task, "one with at least one example")
    return examples


def spread(examples: Sequence[Example], count: int | None) -> list[Example]:
    """At most `count` of the examples, at equal distances; all of them if None."""
    require(count is None or count >= 1, "examples", count, "an integer of at least 1")
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]


def example_from(record: Any, fields: Fields, where: str) -> Example:
    """The example that a record holds; `where` the record is, for messages. Raises ConfigError if it is none."""
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} is a {type(record).__name__}; accepted: an object with fields")
    context = _text(record, fields.context, where)
    if (fields.target in record) == any(name in record for name in fields.choices):
        raise ConfigError(
            f"{where} has the fields {', '.join(map(str, record))}; accepted: either {fields.target!r}, or "
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
    """A field that must be a text that UTF-8 can write, and if it is to be `filled`, not an empty one."""
    value = _field(record, name, where)
    is_text = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    accepted = "a text that is not empty" if filled else "a text"
    require(is_text and (value != "" or not filled), f"{where}: {name}", value, accepted)
    return value


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ConfigError(f"{where}: {name} is missing; accepted: a record with it; this has {', '.join(record)}")
    return record[name]


def _require_same_kind(example: Example, examples: list[Example], where: str) -> None:
    """That an example is a cloze if those before it are; choices may differ in number."""
    kinds = ["a cloze" if len(one.choices) == 1 else "multiple choice" for one in (example, *examples[:1])]
    if len(set(kinds)) > 1:
        raise ConfigError(f"{where} is {kinds[0]}; accepted: {kinds[1]}, as the examples before it")


def _tfds_records(task: str, split: str) -> Iterable[tuple[str, Any]]:
    builder = prepared_builder(task.removeprefix("tfds:"), "TASK", task)
    try:
        source = builder.as_data_source(split)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"split is {split!r}; accepted: of {task} {', '.join(builder.info.splits)}") from error
    for number in range(len(source)):
        where = f"{task}, example {number} of {split}"
        yield where, {name: _plain(value, where) for name, value in source[number].items()}


def _plain(value: Any, where: str) -> Any:
    """A feature's value in the types of JSON; what has none stays as it is."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where} is {value[:60]!r}; accepted: text in UTF-8") from error
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
        return [_plain(item, where) for item in value] if isinstance(value, list) else _plain(value, where)
    return [_plain(item, where) for item in value] if isinstance(value, list) else value
