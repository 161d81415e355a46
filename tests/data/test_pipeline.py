"""Batches to train on: complete, shuffled, resumable and the same for any number of processes; and to validate on."""

import hashlib
import json
import math

import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.data.config import DataConfig
from moe_jax.data.pipeline import load_text
from moe_jax.data.tasks import TASKS, Causal, Masked, SpanCorruption
from tests.comparison import assert_trees_equal

S, B = 16, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty short files, no two sequences of which are the same, and a cache."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(f"{hashlib.sha256(bytes([i])).hexdigest()} \u00e9\n"[: 40 + i % 30])
    return folder


def config_of(folder, **fields):
    values = {"sequence_length": S, "batch_size": B, "validation_fraction": 0.3} | fields
    return DataConfig(corpus=f"text_files:{folder}/*.txt", **values)


@pytest.fixture(scope="module")
def data(folder):
    return load_text(config_of(folder), folder / "cache")


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def rows(batches):
    """The input rows of batches, as a list of tuples in order."""
    return [tuple(row) for batch in batches for row in batch["tokens"].tolist()]


def test_a_batch_has_the_shapes_and_types_it_promises(data):
    (batch,) = take(data.train_batches(seed=0), 1)
    assert {key: (array.shape, str(array.dtype)) for key, array in batch.items()} == {
        "tokens": ((B, S), "int32"),
        "targets": ((B, S), "int32"),
        "segment_ids": ((B, S), "int32"),
        "positions": ((B, S), "int32"),
        "loss_mask": ((B, S), "bool"),
    }


def test_each_epoch_holds_every_sequence_once_in_another_order(data):
    count = len(data.train)
    seen = rows(take(data.train_batches(seed=0), math.ceil(2 * count / B)))
    first, second = seen[:count], seen[count : 2 * count]
    everything = [tuple(data.train[i]["tokens"].tolist()) for i in range(count)]
    assert sorted(first) == sorted(second) == sorted(everything)
    assert first != second
    assert first != everything


def test_the_seed_decides_the_order(data):
    first, again, other = (take(data.train_batches(seed), 5) for seed in (0, 0, 1))
    assert_trees_equal(first, again)
    assert rows(first) != rows(other)


def test_one_seed_does_not_repeat_the_epochs_of_the_next(data):
    count = len(data.train)
    second_epoch = rows(take(data.train_batches(0), math.ceil(2 * count / B)))[count : 2 * count]
    assert second_epoch != rows(take(data.train_batches(1), math.ceil(count / B)))[:count]


@pytest.mark.parametrize("process_count", [2, 4])
@pytest.mark.parametrize("task", [Causal(), Masked(), SpanCorruption(12, 4)], ids=TASKS.name_of)
def test_any_number_of_processes_shares_the_same_global_batches(folder, task, process_count):
    """Also of what is drawn for each."""
    data = load_text(config_of(folder, task=task), folder / "cache")
    steps = 2 * len(data.train) // B
    parts = [take(data.train_batches(0, process, process_count), steps) for process in range(process_count)]
    together = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_trees_equal(together, take(data.train_batches(0), steps))


def test_tokens_are_cached_by_the_tokenizer_that_made_them(folder, tmp_path):
    """One name, `bpe:280`, trained on two corpora: other tokens of one text, and other digests."""
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{i} zz qq zz qq vv ww " * 40)
    other = {"tokenizer": "bpe:280", "tokenizer_corpus": f"text_files:{tmp_path}/*.txt"}
    cache = tmp_path / "cache"
    first, second = (load_text(config_of(folder, **fields), cache) for fields in ({"tokenizer": "bpe:280"}, other))
    fresh = load_text(config_of(folder, **other), tmp_path / "fresh")
    assert first.digest != second.digest == fresh.digest
    assert_trees_equal(take(second.train_batches(0), 3), take(fresh.train_batches(0), 3))
    texts = [data.tokenizer.decode(data.train[0]["tokens"]) for data in (first, second)]
    assert texts[0].startswith(texts[1][:20]) or texts[1].startswith(texts[0][:20])
    assert first.train[0]["tokens"].tolist() != second.train[0]["tokens"].tolist()


@pytest.mark.parametrize("steps", [0, 1, 37])
def test_a_restored_iterator_goes_on_exactly(data, steps):
    iterator = data.train_batches(0, 1, 2)
    take(iterator, steps)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 6)
    restored = data.train_batches(0, 1, 2)
    take(restored, 3)
    restored.set_state(state)
    assert_trees_equal(take(restored, 6), expected)


def test_validation_batches_are_fixed_different_and_spread_over_the_stream(data):
    available = len(data.validation) // B
    assert available >= 3
    assert_trees_equal(data.validation_batches(2), data.validation_batches(2))
    everything = [tuple(data.validation[i]["tokens"].tolist()) for i in range(len(data.validation))]
    chosen = [everything.index(row) for row in rows(data.validation_batches(2))]
    assert len(set(chosen)) == 2 * B
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] >= len(everything) * (1 - 1.5 / B)
    assert_trees_equal(data.validation_batches(None), data.validation_batches(available))
    assert len(data.validation_batches(None)) == available


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:280"])
def test_bytes_per_target_counts_the_bytes_of_what_is_scored(folder, tokenizer):
    data = load_text(config_of(folder, tokenizer=tokenizer), folder / "cache")
    batches = data.validation_batches(2)
    batches[1]["loss_mask"][:, :10] = False
    scored = [row[mask] for batch in batches for row, mask in zip(batch["targets"], batch["loss_mask"], strict=True)]
    text_bytes = sum(len(data.tokenizer.decode(row).encode()) for row in scored)
    assert data.bytes_per_target(batches) == pytest.approx(text_bytes / sum(map(len, scored)))
    assert (data.bytes_per_target(batches) < 1) == (tokenizer == "bytes")


def test_a_batch_that_processes_cannot_share_is_refused(data):
    with pytest.raises(ConfigError, match=r"data.batch_size is 4; accepted: a multiple of the 3 processes"):
        data.train_batches(0, 0, 3)


@pytest.mark.parametrize("count", [0, 10_000])
def test_more_validation_batches_than_there_are_is_refused(data, count):
    with pytest.raises(ConfigError, match=rf"eval_batches is {count}; accepted: 1 to {len(data.validation) // B}"):
        data.validation_batches(count)


def test_a_corpus_smaller_than_a_batch_is_refused(folder):
    with pytest.raises(ConfigError, match=r"data.batch_size is 8; accepted: at most \d, the training examples"):
        load_text(config_of(folder, sequence_length=600, batch_size=8), folder / "cache")


def test_a_corpus_with_too_little_to_validate_on_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("Line of a text.\n" * 40)
    data = load_text(config_of(tmp_path, validation_fraction=0.05), tmp_path / "cache")
    with pytest.raises(
        ConfigError, match=r"data.batch_size is 4; accepted: at most \d, the validation examples of tex"
    ):
        data.validation_batches(1)


def test_the_cache_directory_is_the_default(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path))
    load_text(config_of(folder))
    assert len(list((tmp_path / "tokens").glob("*.npy"))) == 2


def test_hidden_tokens_are_drawn_anew_in_each_epoch_and_are_fixed_for_validation(folder):
    """A run that goes on hides what it would have hidden; the mask is the token after the tokenizer's."""
    data = load_text(config_of(folder, task=Masked(0.3)), folder / "cache")
    epoch = math.ceil(len(data.train) / B)
    iterator = data.train_batches(seed=0)
    first = take(iterator, 2 * epoch)
    state = iterator.get_state()
    later = take(iterator, 3)
    other = data.train_batches(seed=0)
    other.set_state(state)
    assert_trees_equal(later, take(other, 3))
    assert_trees_equal(first[:3], take(data.train_batches(seed=0), 3))
    rows, targets, masks = (np.concatenate([b[key] for b in first]) for key in ("tokens", "targets", "loss_mask"))
    assert (rows[masks] == 257).mean() > 0.7
    assert not (rows[~masks] == 257).any()
    by_text = {}
    for target, mask in zip(targets, masks, strict=True):
        by_text.setdefault(tuple(target), []).append(tuple(mask))
    assert sum(len(set(drawn)) == len(drawn) > 1 for drawn in by_text.values()) > len(by_text) / 2
    assert_trees_equal(data.validation_batches(2), data.validation_batches(2))
    share = np.mean([batch["loss_mask"].mean() for batch in first])
    assert 0.2 < share < 0.35
