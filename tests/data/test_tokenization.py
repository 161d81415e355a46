"""Both tokenizers: exact on any text, with a boundary that no text reaches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.data import tokenization
from moe_jax.data.config import DataConfig
from moe_jax.data.documents import Corpus
from moe_jax.data.tokenization import ByteTokenizer, Tokenizer, load_tokenizer

TEXT = "".join(f"def function_{i}(argument):\n    return argument + {i}\n\n" for i in range(300))
ANY_TEXT = st.text(st.characters(codec="utf-8"))


def corpus_of(*texts):
    return Corpus("text", "0123456789abcdef", lambda split: iter(texts))


@pytest.fixture(scope="module", params=["bytes", "bpe:300"])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(request.param, corpus_of(TEXT), tmp_path_factory.mktemp("cache"))


class TestEveryTokenizer:
    @given(text=ANY_TEXT)
    def test_decoding_gives_back_any_text(self, tokenizer, text):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert (ids != tokenizer.boundary_id).all()

    @given(texts=st.lists(ANY_TEXT, max_size=4))
    def test_a_batch_is_each_text_by_itself(self, tokenizer, texts):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            np.testing.assert_array_equal(ids, tokenizer.encode(text))

    def test_the_boundary_is_the_last_token_and_vanishes_in_decoding(self, tokenizer):
        assert tokenizer.boundary_id == tokenizer.vocab_size - 1
        assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
        assert tokenizer.token_bytes[tokenizer.boundary_id] == 0
        ids = np.concatenate([[tokenizer.boundary_id], tokenizer.encode("é"), [tokenizer.boundary_id]])
        assert tokenizer.decode(ids) == "é"

    def test_bytes_that_are_not_utf8_become_the_replacement_character(self, tokenizer):
        assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"

    def test_it_is_as_the_configuration_has_it(self, tokenizer):
        assert isinstance(tokenizer, Tokenizer)
        assert DataConfig(tokenizer=tokenizer.name).vocab_size == tokenizer.vocab_size


def test_bytes_are_utf8():
    np.testing.assert_array_equal(ByteTokenizer().encode("aé"), [97, 195, 169])


class TestBytePairEncoding:
    def test_it_shortens_text_like_that_it_was_trained_on(self, tmp_path):
        tokenizer = load_tokenizer("bpe:300", corpus_of(TEXT), tmp_path)
        assert len(tokenizer.encode(TEXT)) < len(TEXT) / 3

    def test_training_is_deterministic(self, tmp_path):
        for folder in ("first", "second"):
            load_tokenizer("bpe:300", corpus_of(TEXT), tmp_path / folder)
        first, second = (next((tmp_path / folder).rglob("*.json")).read_text() for folder in ("first", "second"))
        assert first == second

    def test_what_was_trained_is_read_again(self, tmp_path, capsys):
        load_tokenizer("bpe:300", corpus_of(TEXT), tmp_path)
        assert capsys.readouterr().err == "Training a byte-pair encoding of 300 tokens on text\n"
        again = load_tokenizer("bpe:300", corpus_of("never read: the digest is the same"), tmp_path)
        assert capsys.readouterr().err == ""
        assert len(again.encode(TEXT)) < len(TEXT) / 3

    def test_a_corpus_too_small_for_the_size_says_how_far_it_goes(self, tmp_path):
        corpus = corpus_of("abababab")
        with pytest.raises(ConfigError) as caught:
            load_tokenizer("bpe:300", corpus, tmp_path)
        line = "data.tokenizer is 'bpe:300'; accepted: a SIZE of at most 260, the most that text gives"
        assert str(caught.value) == line
        assert list(tmp_path.rglob("*.json")) == []
        assert load_tokenizer("bpe:260", corpus, tmp_path).vocab_size == 260

    def test_the_sample_is_bounded_and_spread_over_the_corpus(self):
        texts = [f"{i:03}" * 10 for i in range(100)]
        sample = list(tokenization._sample(corpus_of(*texts), 300))
        assert sample == texts[::10]
        assert list(tokenization._sample(corpus_of("x" * 1000), 300)) == ["x" * 300]
        assert list(tokenization._sample(corpus_of(*texts), 3000)) == texts
