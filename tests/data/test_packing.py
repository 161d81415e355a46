"""Streams of tokens and the sequences cut from them, against a loop that follows the definition word for word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.data.documents import Corpus
from moe_jax.data.packing import example_count, pack_example, token_stream, tokenise
from moe_jax.data.tokenization import ByteTokenizer

BOUNDARY = 9
KEYS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")


def packed_by_a_loop(stream, index, sequence_length):
    rows = []
    segment, position = 0, 0
    for place in range(index * sequence_length, (index + 1) * sequence_length):
        if place + 1 >= len(stream):
            rows.append((0, 0, 0, 0, False))
            continue
        if segment == 0 or stream[place] == BOUNDARY:
            segment, position = segment + 1, 0
        rows.append((stream[place], stream[place + 1], segment, position, True))
        position += 1
    return dict(zip(KEYS, zip(*rows, strict=True), strict=True))


@given(
    stream=st.lists(st.sampled_from([0, 1, 2, BOUNDARY]), min_size=2, max_size=40), sequence_length=st.integers(1, 12)
)
def test_every_sequence_is_what_the_loop_gives(stream, sequence_length):
    array = np.array(stream, np.uint16)
    for index in range(example_count(array, sequence_length)):
        example = pack_example(array, index, sequence_length, BOUNDARY)
        assert tuple(example) == KEYS
        for key, expected in packed_by_a_loop(stream, index, sequence_length).items():
            assert example[key].dtype == (bool if key == "loss_mask" else np.int32)
            np.testing.assert_array_equal(example[key], expected)


@given(stream=st.lists(st.integers(0, BOUNDARY), min_size=2, max_size=40), sequence_length=st.integers(1, 12))
def test_the_sequences_hold_every_token_but_the_first_as_a_target_once(stream, sequence_length):
    array = np.array(stream, np.uint16)
    examples = [
        pack_example(array, index, sequence_length, BOUNDARY) for index in range(example_count(array, sequence_length))
    ]
    assert all(example["loss_mask"].any() for example in examples)
    targets = np.concatenate([example["targets"][example["loss_mask"]] for example in examples])
    np.testing.assert_array_equal(targets, stream[1:])


def test_a_boundary_begins_a_segment_and_is_a_target_of_the_one_before():
    example = pack_example(np.array([9, 1, 2, 9, 3, 4], np.uint16), 0, 4, BOUNDARY)
    np.testing.assert_array_equal(example["targets"], [1, 2, 9, 3])
    np.testing.assert_array_equal(example["segment_ids"], [1, 1, 1, 2])
    np.testing.assert_array_equal(example["positions"], [0, 1, 2, 0])
    assert example["loss_mask"].all()


def test_a_stream_of_fewer_than_two_tokens_has_no_sequence():
    assert [example_count(np.zeros(n, np.uint16), 4) for n in (0, 1, 2, 5, 6)] == [0, 0, 1, 1, 2]


class TestTokenStream:
    @pytest.fixture
    def corpus(self):
        texts = {"train": [f"document {i}" for i in range(600)], "validation": ["é", "b"]}
        return Corpus("text", "0123456789abcdef", lambda split: iter(texts[split]))

    def test_each_document_follows_a_boundary(self, corpus, tmp_path):
        stream = token_stream(corpus, "validation", ByteTokenizer(), tmp_path)
        np.testing.assert_array_equal(stream, [256, 195, 169, 256, 98])
        assert stream.dtype == np.uint16
        train = token_stream(corpus, "train", ByteTokenizer(), tmp_path)
        assert (train == 256).sum() == 600
        assert ByteTokenizer().decode(train) == "".join(corpus.documents("train"))

    def test_it_is_kept_on_disk_and_mapped(self, corpus, tmp_path):
        first = token_stream(corpus, "train", ByteTokenizer(), tmp_path)
        (file,) = tmp_path.rglob("*.npy")
        written = file.stat().st_mtime_ns
        again = token_stream(corpus, "train", ByteTokenizer(), tmp_path)
        assert isinstance(again, np.memmap)
        assert file.stat().st_mtime_ns == written
        np.testing.assert_array_equal(first, again)

    def test_a_vocabulary_beyond_16_bits_takes_32(self):
        class Wide(ByteTokenizer):
            vocab_size = 2**16 + 1
            boundary_id = 2**16

        stream = tokenise(["a"], Wide())
        assert stream.dtype == np.uint32
        np.testing.assert_array_equal(stream, [2**16, 97])
