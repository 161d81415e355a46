"""Span corruption against T5's own numbers, and what must hold of every text."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import load_corpus
from moe_jax.data.packing import token_stream
from moe_jax.data.pipeline import load_text
from moe_jax.data.tasks import SpanCorruption
from moe_jax.data.tasks.pair_example import pair_example
from moe_jax.data.tasks.span_corruption import Lengths, corrupt_spans, corrupted_lengths, draw_spans, longest_text
from tests.comparison import assert_trees_equal
from tests.data.test_pipeline import take

SENTINEL, END = 1000, 999


def test_lengths_are_those_of_t5():
    """Of 512 tokens for the encoder, 114 for the decoder are left, from texts of 568 (its code, and ST-MoE's paper)."""
    lengths = longest_text(512, 0.15, 3.0)
    assert (lengths.text, lengths.inputs, lengths.targets) == (568, 512, 114)


@given(inputs=st.integers(4, 300), rate=st.floats(0.05, 0.9), mean_span=st.floats(1.0, 10.0))
def test_the_longest_text_fits_and_a_longer_one_does_not(inputs, rate, mean_span):
    lengths = longest_text(inputs, rate, mean_span)
    assert lengths.inputs <= inputs
    assert corrupted_lengths(lengths.text + 1, rate, mean_span).inputs > inputs
    assert 1 <= lengths.spans <= lengths.hidden < lengths.text


@given(text=st.integers(2, 60), rate=st.floats(0.05, 0.9), mean_span=st.floats(1.0, 6.0), seed=st.integers(0, 99))
def test_both_texts_together_are_the_text(text, rate, mean_span, seed):
    lengths = corrupted_lengths(text, rate, mean_span)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (5, text))
    hidden = draw_spans(lengths, 5, rng)
    assert (hidden.sum(axis=1) == lengths.hidden).all()
    assert not hidden[:, 0].any()
    assert hidden[:, -1].all()
    all_inputs, all_targets = corrupt_spans(tokens, hidden, SENTINEL, END)
    assert (all_inputs.shape, all_targets.shape) == ((5, lengths.inputs), (5, lengths.targets))
    for original, inputs, targets in zip(tokens, all_inputs, all_targets, strict=True):
        assert inputs[-1] == targets[-1] == END
        # Each sentinel of the input gives way to what follows it in the target.
        spans, current = {}, None
        for token in targets[:-1]:
            if token >= SENTINEL:
                current = spans.setdefault(token, [])
            else:
                current.append(token)
        assert list(spans) == [SENTINEL + i for i in range(lengths.spans)]
        restored = [piece for token in inputs[:-1] for piece in spans.get(token, [token])]
        np.testing.assert_array_equal(restored, original)


def test_every_way_to_cut_is_as_likely():
    """Of 5 hidden tokens in 2 spans, the first has 1 to 4, each as often; so with the 4 that stay, 1 to 3."""
    rng = np.random.default_rng(0)
    drawn = [*draw_spans(Lengths(9, 5, 2), 3000, rng), *draw_spans(Lengths(9, 5, 2), 3000, rng)]
    first = [int(np.argmin(mask[np.argmax(mask) :])) for mask in drawn]
    np.testing.assert_allclose(np.bincount(first, minlength=5)[1:] / 6000, 1 / 4, atol=0.03)
    before = [int(np.argmax(mask)) for mask in drawn]
    np.testing.assert_allclose(np.bincount(before, minlength=4)[1:] / 6000, 1 / 3, atol=0.03)


def test_an_example_by_hand():
    text = np.array([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])
    hidden = np.array([[False, True, True, False, False, True], [False, False, True, False, True, True]])
    inputs, targets = corrupt_spans(text, hidden, SENTINEL, END)
    np.testing.assert_array_equal(inputs, [[10, 1000, 13, 14, 1001, 999], [20, 21, 1000, 23, 1001, 999]])
    np.testing.assert_array_equal(targets, [[1000, 11, 12, 1001, 15, 999], [1000, 22, 1001, 24, 25, 999]])
    example = pair_example(inputs[0], targets[0], 8, 7, END)
    expected = {
        "encoder_tokens": [10, 1000, 13, 14, 1001, 999, 0, 0],
        "encoder_segment_ids": [1, 1, 1, 1, 1, 1, 0, 0],
        "encoder_positions": [0, 1, 2, 3, 4, 5, 0, 0],
        "tokens": [999, 1000, 11, 12, 1001, 15, 0],
        "targets": [1000, 11, 12, 1001, 15, 999, 0],
        "segment_ids": [1, 1, 1, 1, 1, 1, 0],
        "positions": [0, 1, 2, 3, 4, 5, 0],
        "loss_mask": [True] * 6 + [False],
    }
    assert set(example) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(example[name], values)
        assert example[name].dtype == (bool if name == "loss_mask" else np.int32)
    batch = pair_example(inputs, targets, 8, 7, END)
    for i in range(2):
        assert_trees_equal(
            [{name: array[i] for name, array in batch.items()}], [pair_example(inputs[i], targets[i], 8, 7, END)]
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(30):
        (folder / f"{i}.txt").write_text(hashlib.sha256(bytes([i])).hexdigest() * 4)
    return folder


def config_of(folder, **fields):
    task = SpanCorruption(**({"target_length": 12, "sentinels": 4} | fields))
    corpus = f"text_files:{folder}/*.txt"
    return DataConfig(corpus=corpus, validation_fraction=0.3, sequence_length=32, batch_size=4, task=task)


def test_batches_are_drawn_anew_in_each_epoch_and_are_the_same_when_a_run_goes_on(folder, tmp_path):
    config = config_of(folder)
    data = load_text(config, tmp_path)
    (batch,) = take(data.train_batches(seed=0), 1)
    assert {name: array.shape for name, array in batch.items() if name.startswith("encoder")} == {
        f"encoder_{name}": (4, 32) for name in ("tokens", "segment_ids", "positions")
    }
    assert all(batch[name].shape == (4, 12) for name in ("tokens", "targets", "loss_mask", "segment_ids", "positions"))
    assert max(batch["encoder_tokens"].max(), batch["targets"].max()) < config.vocab_size == 257 + 4
    epoch = len(data.train) // 4
    iterator = data.train_batches(seed=0)
    seen = take(iterator, 2 * epoch)
    state = iterator.get_state()
    other = data.train_batches(seed=0)
    other.set_state(state)
    assert_trees_equal(take(iterator, 2), take(other, 2))
    rows = [tuple(row) for part in seen for row in part["targets"].tolist()]
    assert len(set(rows)) > 0.9 * len(rows)
    assert_trees_equal(data.validation_batches(2), data.validation_batches(2))
    # All of the stream, but for what is left of it at the end.
    stream = token_stream(load_corpus(config, tmp_path), "train", data.tokenizer, tmp_path)
    assert len(data.train) == len(stream) // config.task.lengths(32).text


def test_rate_and_span_decide_how_much_is_hidden(folder, tmp_path):
    for fields in ({}, {"mask_rate": 0.3, "sentinels": 9, "target_length": 20}, {"mean_span": 1.5, "sentinels": 9}):
        config = config_of(folder, **fields)
        expected = longest_text(32, config.task.mask_rate, config.task.mean_span)
        batch = load_text(config, tmp_path).validation_batches(1)[0]
        assert (batch["loss_mask"].sum(axis=1) == expected.targets).all()
        assert ((batch["targets"] > 256).sum(axis=1) == expected.spans).all()
        assert (batch["encoder_segment_ids"].sum(axis=1) == expected.inputs).all()


def test_bytes_of_targets_leave_out_sentinels_and_ends(folder, tmp_path):
    data = load_text(config_of(folder), tmp_path)
    batches = data.validation_batches(2)
    targets = np.concatenate([batch["targets"][batch["loss_mask"]] for batch in batches])
    assert data.bytes_per_target(batches) == pytest.approx((targets < 256).mean())
