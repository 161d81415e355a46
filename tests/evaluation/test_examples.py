"""Questions from files and data sets, and every way in which a line is none."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from moe_jax.configuration import ConfigError
from moe_jax.evaluation.examples import Example, Fields, read_examples, spread

CHOICE = {"context": "2 + 2 =", "choices": [" 4", " 5", " é"], "answer": 0}
CLOZE = {"context": "", "target": "word"}


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def error_of(*arguments):
    with pytest.raises(ConfigError) as caught:
        read_examples(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


class TestJsonLines:
    def test_multiple_choice(self, tmp_path):
        more = {"context": "", "choices": ["a", "b"], "answer": 1, "id": 7}
        examples = read_examples(write(tmp_path / "a.jsonl", CHOICE, "\n", more))
        assert examples == [Example("2 + 2 =", (" 4", " 5", " é"), 0), Example("", ("a", "b"), 1)]
        assert [example.solved for example in examples] == ["2 + 2 = 4", "b"]

    def test_cloze(self, tmp_path):
        assert read_examples(write(tmp_path / "a.jsonl", CLOZE)) == [Example("", ("word",))]

    def test_a_last_line_without_its_end_counts(self, tmp_path):
        path = write(tmp_path / "a.jsonl", CLOZE, json.dumps(CLOZE))
        assert len(read_examples(path)) == 2

    def test_fields_by_other_names_and_what_joins_them(self, tmp_path):
        path = write(tmp_path / "a.jsonl", {"q": "Is it?", "no": "No", "yes": "Yes", "gold": 1})
        fields = Fields(context="q", choices=("no", "yes"), answer="gold", join=" ")
        assert read_examples(path, fields) == [Example("Is it?", (" No", " Yes"), 1)]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{\n", "accepted: JSON"),
            ('"text"\n', "is a str; accepted: a JSON object"),
            ({"choices": ["a", "b"], "answer": 0}, "context is missing; the record has the fields choices"),
            (CHOICE | {"context": 3}, "context is 3; accepted: a text"),
            (CHOICE | {"context": "\ud800"}, "context is '\\ud800'; accepted: a text"),
            (CHOICE | {"target": "x"}, "accepted: either 'target', or 'choices' and 'answer'"),
            ({"context": "a"}, "has the fields context; accepted: either 'target'"),
            (CHOICE | {"choices": "ab"}, "choices is 'ab'; accepted: a list of at least two texts"),
            (CHOICE | {"choices": ["a"]}, "choices is ['a']; accepted: a list of at least two texts"),
            (CHOICE | {"choices": ["a", ""]}, "choices[1] is ''; accepted: a text that is not empty"),
            (CHOICE | {"choices": ["a", 5]}, "choices[1] is 5; accepted: a text"),
            ({"context": "a", "choices": ["a", "b"]}, "answer is missing"),
            (CHOICE | {"answer": 3}, "answer is 3; accepted: the index of a choice, 0 to 2"),
            (CHOICE | {"answer": -1}, "answer is -1; accepted: the index"),
            (CHOICE | {"answer": True}, "answer is True; accepted: the index"),
            (CHOICE | {"answer": "0"}, "answer is '0'; accepted: the index"),
            (CLOZE | {"target": ""}, "target is ''; accepted: a text that is not empty"),
            (CLOZE, "is a cloze; accepted: multiple choice, like the examples before it"),
        ],
    )
    def test_a_malformed_line_is_named(self, tmp_path, line, says):
        path = write(tmp_path / "a.jsonl", CHOICE, "\n", line, CHOICE)
        message = error_of(path)
        assert message.startswith(f"{path}:3")
        assert says in message

    def test_text_not_in_utf8_is_named(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'{"context": "caf\xe9", "target": "x"}\n')
        assert error_of(str(tmp_path / "a.jsonl")).startswith(f"{tmp_path}/a.jsonl:1 is")

    @pytest.mark.parametrize("name", ["absent.jsonl", "a.json"])
    def test_no_such_file(self, tmp_path, name):
        write(tmp_path / "a.json", CHOICE)
        assert "accepted: a file of JSON lines that ends in .jsonl, tfds:NAME" in error_of(str(tmp_path / name))

    def test_an_empty_file(self, tmp_path):
        assert error_of(write(tmp_path / "a.jsonl", "\n")).endswith("a task with at least one example")


def test_spread_keeps_the_order_and_takes_from_all_of_it():
    examples = [Example(str(i), ("a",)) for i in range(10)]
    assert [example.context for example in spread(examples, 4)] == ["0", "2", "5", "7"]
    assert spread(examples, None) == spread(examples, 20) == examples
    with pytest.raises(ConfigError, match="examples is 0; accepted: an integer of at least 1"):
        spread(examples, 0)


class Questions(tfds.core.GeneratorBasedBuilder):
    """Two questions with all kinds of features."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, first=b"one", **options):
        self._first = first
        super().__init__(**options)

    def _info(self):
        features = {
            "goal": tfds.features.Text(),
            "one": tfds.features.Text(),
            "two": tfds.features.Text(),
            "endings": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(num_classes=2),
            "gold": np.int32,
            "score": np.float32,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples(2), "train": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            texts = {"goal": f"goal {i}", "one": self._first, "two": "two", "endings": ["a", "é", "c"]}
            yield i, texts | {"label": i, "gold": 2 - i, "score": 0.5}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares the data set `questions` where TFDS looks for it."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(**options):
        Questions(data_dir=tmp_path, file_format="array_record", **options).download_and_prepare()

    return prepare


class TestTfds:
    def test_choices_in_a_list_or_in_fields_of_their_own(self, prepared):
        prepared()
        listed = read_examples("tfds:questions", Fields("goal", ("endings",), "gold", join=" "))
        assert listed == [Example("goal 0", (" a", " é", " c"), 2), Example("goal 1", (" a", " é", " c"), 1)]
        apart = read_examples("tfds:questions", Fields("goal", ("one", "two"), "label"))
        assert apart == [Example("goal 0", ("one", "two"), 0), Example("goal 1", ("one", "two"), 1)]

    def test_a_cloze_and_another_split(self, prepared):
        prepared()
        assert read_examples("tfds:questions", Fields("goal", target="two"), "train") == [Example("goal 0", ("two",))]

    def test_errors_name_the_example_and_the_feature(self, prepared):
        prepared(first=b"")
        where = "tfds:questions, example 0 of validation"
        assert error_of("tfds:questions", Fields("goal", ("one", "two"), "label")).startswith(f"{where}: one is ''")
        assert error_of("tfds:questions", Fields("goal", ("endings",), "score")).startswith(f"{where}: score is 0.5")
        missing = error_of("tfds:questions", Fields("question", ("one", "two"), "label"))
        assert missing.startswith(f"{where}: question is missing")
        assert "goal" in missing

    def test_a_split_that_is_not_there_lists_those_that_are(self, prepared):
        prepared()
        line = error_of("tfds:questions", Fields("goal", ("one", "two"), "label"), "test")
        assert line.startswith("split is 'test'; accepted: a split of tfds:questions: ")
        assert "validation" in line

    def test_text_not_in_utf8_says_which_example(self, prepared):
        prepared(first=b"caf\xe9")
        line = error_of("tfds:questions", Fields("goal", ("one", "two"), "label"))
        assert line == "tfds:questions, example 0 of validation is b'caf\\xe9'; accepted: text in UTF-8"

    def test_a_data_set_that_is_not_prepared_says_how_to_prepare_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        line = error_of("tfds:questions")
        assert line.startswith("TASK is 'tfds:questions'; accepted: a prepared data set")
        assert "tfds build questions --file_format=array_record" in line
