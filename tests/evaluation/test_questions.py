"""Tasks made of documents: what is asked can be found there, and nothing but the text tells the answer."""

import collections
import re

import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.data.documents import Corpus
from moe_jax.evaluation.examples import Example
from moe_jax.evaluation.questions import CHOICES, continuation, corpus_task, last_word


def document(seed):
    """Functions of lines that are like each other and never the same."""
    rng = np.random.default_rng(seed)
    names = [f"name_{seed}_{i}" for i in range(5)]
    parts = []
    for i in range(20):
        first, second = rng.choice(names, 2)
        parts += [f"def function_{seed}_{i}({first}):", f"    value = {first} + {i}", f"    return {second}", ""]
    return "\n".join(parts)


DOCUMENTS = [document(seed) for seed in range(12)]


def places(example, line):
    """The documents in which the context is followed by `line`."""
    return [number for number, text in enumerate(DOCUMENTS) if f"{example.context}{line}\n" in text]


@pytest.fixture(scope="module")
def examples():
    return continuation(DOCUMENTS, 150, lines=2)


class TestContinuation:
    def test_only_the_right_line_follows_the_context(self, examples):
        for example in examples:
            assert example.context.endswith("\n")
            assert example.context.count("\n") == 2
            assert [bool(places(example, line)) for line in example.choices] == [
                i == example.answer for i in range(CHOICES)
            ]

    def test_wrong_lines_are_lines_of_other_documents_like_the_right_one(self, examples):
        for example in examples:
            right = example.choices[example.answer]
            (own,) = places(example, right)
            assert len(set(example.choices)) == CHOICES
            for line in example.choices:
                assert re.match(" *", line)[0] == re.match(" *", right)[0]
                assert abs(len(line) - len(right)) <= 0.2 * len(right)
                lines = [number for number, text in enumerate(DOCUMENTS) if line in text.split("\n")]
                assert (own in lines) == (line == right)

    def test_the_right_one_is_in_any_place(self, examples):
        """Of 150 draws of four places each within five standard deviations of 37.5."""
        counts = collections.Counter(example.answer for example in examples)
        assert all(abs(counts[i] - 37.5) < 27 for i in range(CHOICES))

    def test_they_are_the_same_each_time_and_all_different(self, examples):
        assert continuation(DOCUMENTS, 150, lines=2) == examples
        assert continuation(DOCUMENTS, 150, lines=2, seed=1) != examples
        assert len({example.solved for example in examples}) == 150

    def test_fewer_are_the_first_of_more(self, examples):
        assert continuation(DOCUMENTS, 10, lines=2) == examples[:10]

    def test_lines_that_say_nothing_are_no_choices(self):
        for example in continuation(["a = 1\n" + ")\n" * 9 + text for text in DOCUMENTS], 100, lines=2):
            assert all(len(line.strip()) >= 12 for line in example.choices)

    def test_one_document_has_no_lines_from_elsewhere(self):
        with pytest.raises(
            ConfigError, match=r"examples is 1; accepted: at least 1 and at most 0, all .* continuation"
        ):
            continuation(DOCUMENTS[:1], 1)


class TestLastWord:
    def test_the_word_ends_its_line_and_stands_before(self):
        for example in last_word(DOCUMENTS, 40, lines=3):
            (word,) = example.choices
            assert places(example, word)
            assert example.context.count("\n") == 2
            assert word in re.findall(r"\w+", example.context)

    @pytest.mark.parametrize(
        ("text", "examples"),
        [
            ("use some_name\nreturn some_name\n", [Example("use some_name\nreturn ", ("some_name",))]),
            # Without its line's end, it may not be whole.
            ("use some_name\nreturn some_name", []),
            ("use some_names\nreturn some_name\n", []),
            ("some_name = 1\nreturn some_name()\n", []),
            ("some_name = 1\nreturn x.some_name\n", [Example("some_name = 1\nreturn x.", ("some_name",))]),
            # A keyword, a number and a short name.
            ("while None\nreturn None\n", []),
            ("use 12345\nreturn 12345\n", []),
            ("abc = 1\nreturn abc\n", []),
            ("élan\ncet élan\n", [Example("élan\ncet ", ("élan",))]),
        ],
    )
    def test_by_hand(self, text, examples):
        if examples:
            assert last_word([text], 1, lines=2) == examples
        else:
            with pytest.raises(ConfigError, match="at most 0, all that the documents give for last_word"):
                last_word([text], 1, lines=2)

    def test_places_are_drawn(self):
        assert last_word(DOCUMENTS, 20, lines=3, seed=1) != last_word(DOCUMENTS, 20, lines=3)


class TestCorpusTask:
    CORPUS = Corpus("text", "", lambda split: iter(DOCUMENTS[:6] if split == "train" else DOCUMENTS[6:]))

    @pytest.mark.parametrize("name", ["continuation", "last_word"])
    def test_questions_are_of_validation_documents_and_demonstrations_of_training_ones(self, name):
        examples, pool = corpus_task(name, self.CORPUS, 10, lines=3)
        assert len(examples) == len(pool) == 10
        for example in examples:
            assert min(places(example, example.choices[example.answer])) >= 6
        for example in pool:
            assert max(places(example, example.choices[example.answer])) < 6

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"corpus task is 'continuations'; .* did you mean 'continuation'"):
            corpus_task("continuations", self.CORPUS, 20)
        with pytest.raises(ConfigError, match="lines is 0; accepted: an integer of at least 1"):
            corpus_task("continuation", self.CORPUS, 20, lines=0)
        with pytest.raises(ConfigError, match="examples is 0; accepted: at least 1"):
            corpus_task("continuation", self.CORPUS, 0)
