"""Pairs of texts: what is found in code and in JSON lines, how it is split, and what of it a model sees."""

import asyncio
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import load_corpus
from moe_jax.data.pairs import functions_of, load_pairs
from moe_jax.data.pipeline import load_text
from moe_jax.data.tasks import TextToText
from moe_jax.data.tasks.text_to_text import Pair
from moe_jax.data.tokenization import load_tokenizer

CODE = '''
def outer(x):
    """Calls outer no more than once."""
    def inner(y):
        return outer(y - 1)
    return inner(x)


class Thing:
    @property
    def size(self):
        return self._size  # not size

    def __len__(self):
        return 0

    async def wait(self):
        return await self.wait()
'''


def test_functions_with_their_names_replaced():
    pairs = {pair.targets: pair.inputs for pair in functions_of(CODE)}
    assert set(pairs) == {"outer", "inner", "size", "wait"}
    assert pairs["inner"] == "def _(y):\n    return outer(y - 1)\n"
    assert pairs["size"] == "def _(self):\n    return self._size  # not _\n"
    assert pairs["wait"] == "async def _(self):\n    return await self._()\n"
    assert "outer" not in pairs["outer"]
    assert functions_of("no python") == []


def test_form_feeds_and_other_ends_are_no_lines_of_code():
    """Python counts its lines by line feeds and carriage returns, `splitlines` by more."""
    text = "x = 1\n\x0c\ny = 'a\x0bb'\r\ndef first():\r\n    return 1\n\x0c\ndef second():\n    return 2\n"
    found = {pair.targets: pair.inputs for pair in functions_of(text)}
    assert found == {"first": "def _():\n    return 1\n", "second": "def _():\n    return 2\n"}


def test_a_text_may_hold_what_ends_lines_elsewhere(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"inputs": f"one\u2028two\x85{i}", "targets": "three"} for i in range(20)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    splits = load_pairs(config_of(path)).splits
    assert sorted(pair.inputs for pairs in splits.values() for pair in pairs) == sorted(x["inputs"] for x in lines)


def test_tokens_are_those_of_the_corpus_that_the_tokenizer_is_of(tmp_path):
    """As a run that goes on from another one's parameters needs."""
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(f"question answer {i} " * 30)
    path = write_lines(tmp_path / "a.jsonl", [{"inputs": f"question {i}", "targets": "answer"} for i in range(40)])
    corpus = f"text_files:{tmp_path}/text/*.txt"
    data = load_text(config_of(path, tokenizer="bpe:270", tokenizer_corpus=corpus), tmp_path / "cache")
    text = DataConfig(corpus=corpus, tokenizer="bpe:270", validation_fraction=0.3)
    expected = load_tokenizer("bpe:270", load_corpus(text), tmp_path / "other").encode("answer")
    assert len(expected) < len("answer")
    assert data.train[0]["targets"][: len(expected) + 1].tolist() == [*expected.tolist(), 269]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_of(path, **fields):
    values = {"task": TextToText(6), "sequence_length": 16, "batch_size": 2}
    return DataConfig(corpus=f"json_lines:{path}", **(values | {"validation_fraction": 0.3} | fields))


def test_each_pair_is_in_one_split_wherever_it_stands(tmp_path):
    lines = [{"inputs": f"question {i}", "targets": f"answer {i % 3}"} for i in range(40)]
    first = load_pairs(config_of(write_lines(tmp_path / "a.jsonl", lines)))
    second = load_pairs(config_of(write_lines(tmp_path / "b.jsonl", lines[::-1] + lines[:5])))
    assert first.splits == second.splits
    assert first.digest == second.digest
    every = [pair for pairs in first.splits.values() for pair in pairs]
    assert sorted(pair.inputs for pair in every) == sorted(line["inputs"] for line in lines)
    assert load_pairs(config_of(write_lines(tmp_path / "c.jsonl", lines[1:]))).digest != first.digest


def test_a_model_sees_a_pair_and_the_end_of_each_text(tmp_path):
    lines = [{"inputs": "ab", "targets": "xyz"}, {"inputs": "a" * 40, "targets": "b" * 40}]
    lines += [{"inputs": f"{i}", "targets": ""} for i in range(20)]
    data = load_text(config_of(write_lines(tmp_path / "a.jsonl", lines)))
    examples = [source[i] for source in (data.train, data.validation) for i in range(len(source))]
    (short,) = [e for e in examples if e["encoder_tokens"][:3].tolist() == [97, 98, 256]]
    assert short["encoder_segment_ids"].tolist() == [1] * 3 + [0] * 13
    assert short["tokens"].tolist() == [256, 120, 121, 122, 0, 0]
    assert short["targets"].tolist() == [120, 121, 122, 256, 0, 0]
    assert short["loss_mask"].tolist() == [True] * 4 + [False] * 2
    (long,) = [e for e in examples if e["encoder_segment_ids"].all()]
    assert long["encoder_tokens"].tolist() == [97] * 15 + [256]
    assert long["targets"].tolist() == [98] * 5 + [256]


def test_fewer_pairs_to_train_on_are_a_part_of_all(tmp_path):
    lines = [{"inputs": f"question {i}", "targets": f"{i}"} for i in range(40)]
    path = write_lines(tmp_path / "a.jsonl", lines)
    every, some = (load_text(config_of(path, task=TextToText(6, train_examples=n))) for n in (None, 8))
    assert len(some.train) == 8
    for i in range(8):
        np.testing.assert_array_equal(some.train[i]["encoder_tokens"], every.train[i]["encoder_tokens"])
    assert len(some.validation) == len(every.validation)


def test_functions_of_the_library_are_found_once_and_kept(tmp_path, monkeypatch):
    """One package stands in for the whole library, which takes a minute."""
    library = Path(asyncio.__file__).parent
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    config = DataConfig(
        corpus="python_functions",
        validation_fraction=0.2,
        task=TextToText(8),
        tokenizer="bpe:300",
        tokenizer_corpus="python_source",
    )
    pairs = load_pairs(config, tmp_path)
    every = {pair for path in library.glob("*.py") for pair in functions_of(path.read_text(encoding="utf-8"))}
    assert len(every) > 500
    assert all(pairs.splits.values())
    assert sorted(map(repr, itertools.chain(*pairs.splits.values()))) == sorted(map(repr, every))
    (kept,) = (tmp_path / "pairs").iterdir()
    stamp = kept.stat().st_mtime_ns
    assert load_pairs(config, tmp_path) == pairs
    assert kept.stat().st_mtime_ns == stamp
    assert Pair("def _(x):\n    return x\n", "f").digest != Pair("def _(x):\n    return x\n", "g").digest


LINES = ["[]", '{"inputs": "a"}', '{"inputs": "a", "targets": 3}', "text", '{"inputs": "\\ud83d", "targets": "b"}']


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"inputs": "a", "targets": "b"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"a.jsonl:2 is .*; accepted: "):
        load_pairs(config_of(path))


def test_an_empty_split_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"inputs": "a", "targets": "b"}])
    with pytest.raises(ConfigError, match="pairs in both splits"):
        load_pairs(config_of(path))
