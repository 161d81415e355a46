"""Prompts: what is read, what is scored, which demonstrations come before, and what gives way in one too long."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.data.documents import Corpus
from moe_jax.data.tokenization import BytePairTokenizer, ByteTokenizer, load_tokenizer
from moe_jax.evaluation.examples import Example
from moe_jax.evaluation.prompts import SEPARATOR, choice_spans, draw_demonstrations, make_prompt

BYTES = ByteTokenizer()
TEXT = "".join(f"def function_{i}(argument):\n    return argument + {i}\n\n" for i in range(300))
# Often those of the corpus, so that pieces reach across.
texts = st.lists(
    st.sampled_from(["def", " function", "_", "(arg", "ument", ")", ":\n", "    ", " ret", "urn", "é"])
).map("".join)
filled = texts.filter(bool)


@pytest.fixture(scope="module", params=["bytes", "bpe:300"])
def tokenizer(request, tmp_path_factory):
    corpus = Corpus("text", "0123456789abcdef", lambda split: iter([TEXT]))
    return load_tokenizer(request.param, corpus, tmp_path_factory.mktemp("cache"))


def pieces(tokenizer, span):
    """The texts of the tokens that are read and of those that are scored."""
    assert span.prefix[0] == tokenizer.boundary_id
    return tuple([tokenizer.decode(ids[i : i + 1]) for i in range(len(ids))] for ids in (span.prefix[1:], span.scored))


def byte_pairs(*merges):
    """Single letters and what the given pairs of pieces make."""
    vocabulary = {letter: i for i, letter in enumerate("abcdxy")}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    encoding = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(merges)))
    encoding.decoder = tokenizers.decoders.ByteLevel()
    return BytePairTokenizer(encoding)


class TestChoiceSpans:
    @given(context=texts, choices=st.lists(filled, min_size=1, max_size=4))
    def test_a_span_is_the_whole_text_as_in_training(self, tokenizer, context, choices):
        spans = choice_spans(context, choices, tokenizer)
        for span, choice in zip(spans, choices, strict=True):
            ids = np.concatenate([span.prefix, span.scored])
            np.testing.assert_array_equal(ids, [tokenizer.boundary_id, *tokenizer.encode(context + choice)])

    @given(context=texts, choices=st.lists(filled, min_size=1, max_size=4))
    def test_all_choices_continue_one_prefix_which_is_as_long_as_can_be(self, tokenizer, context, choices):
        spans = choice_spans(context, choices, tokenizer)
        prefix = spans[0].prefix
        assert all(np.array_equal(span.prefix, prefix) for span in spans)
        end = len(context.encode())
        read = tokenizer.token_bytes[prefix].sum()
        assert read <= end
        assert all(len(span.scored) for span in spans)
        # One token more would not be read by all, or reaches into a choice.
        following = {int(span.scored[0]) for span in spans}
        assert len(following) > 1 or read + tokenizer.token_bytes[following.pop()] > end

    def test_bytes_never_reach_across(self):
        spans = choice_spans("ab é", ["é", "x"], BYTES)
        assert [BYTES.decode(span.scored) for span in spans] == ["é", "x"]
        assert [len(span.scored) for span in spans] == [2, 1]

    def test_a_piece_across_the_end_of_the_context_is_scored_for_every_choice(self):
        """bc is one piece, bd is not: b, which the context ends in, is scored in both."""
        spans = choice_spans("ab", ["c", "d"], byte_pairs(("b", "c")))
        assert [pieces(byte_pairs(("b", "c")), span) for span in spans] == [(["a"], ["bc"]), (["a"], ["b", "d"])]

    def test_without_such_a_piece_the_context_is_read_whole(self):
        tokenizer = byte_pairs(("b", "c"))
        spans = choice_spans("ab", ["d", "x"], tokenizer)
        assert [pieces(tokenizer, span) for span in spans] == [(["a", "b"], ["d"]), (["a", "b"], ["x"])]

    def test_pieces_that_a_choice_changes_further_back_are_scored(self):
        """abc is made of bc first, so the context's own piece ab is not there."""
        tokenizer = byte_pairs(("b", "c"), ("a", "b"))
        spans = choice_spans("xab", ["c", "d"], tokenizer)
        assert [pieces(tokenizer, span) for span in spans] == [(["x"], ["a", "bc"]), (["x"], ["ab", "d"])]

    def test_an_empty_context_leaves_the_boundary(self, tokenizer):
        (span,) = choice_spans("", ["def"], tokenizer)
        assert span.prefix.tolist() == [tokenizer.boundary_id]
        np.testing.assert_array_equal(span.scored, tokenizer.encode("def"))


QUESTION = Example("question?", (" no", " maybe"), 1)
DEMONSTRATIONS = [Example(f"{word}?", (" yes", " no"), i % 2) for i, word in enumerate(["first", "second", "third"])]
WHOLE = "first? yes\n\nsecond? no\n\nthird? yes\n\nquestion?"


def read(span):
    """The text before what is scored, with | for the boundary."""
    return ("|" if span.prefix[0] == BYTES.boundary_id else "") + BYTES.decode(span.prefix)


class TestMakePrompt:
    def test_solved_examples_come_first_two_line_ends_apart(self):
        prompt = make_prompt(QUESTION, DEMONSTRATIONS, BYTES, 1000)
        assert [read(span) for span in prompt.spans] == ["|" + WHOLE] * 2
        assert [BYTES.decode(span.scored) for span in prompt.spans] == [" no", " maybe"]
        assert (prompt.demonstrations, prompt.truncated) == (3, False)

    @given(max_tokens=st.integers(len(" maybe"), 80))
    def test_the_first_go_whole_until_the_longest_choice_fits(self, max_tokens):
        prompt = make_prompt(QUESTION, DEMONSTRATIONS, BYTES, max_tokens)
        # The boundary is read as well, the last letter of the choice is not.
        room = max_tokens - 1 - len(" maybe") + 1
        parts = WHOLE.split(SEPARATOR)
        fitting = [text for text in (SEPARATOR.join(parts[i:]) for i in range(4)) if len(text) <= room]
        if fitting:
            assert {read(span) for span in prompt.spans} == {"|" + fitting[0]}
            assert prompt.demonstrations == len(fitting) - 1
            assert not prompt.truncated
        else:
            assert {read(span) for span in prompt.spans} == {"question?"[-(room + 1) :]}
            assert (prompt.demonstrations, prompt.truncated) == (0, True)
        assert max(span.inputs for span in prompt.spans) <= max_tokens

    def test_a_choice_that_is_too_long_is_an_error(self):
        with pytest.raises(
            ConfigError, match=r"a choice that follows 'question\?' is 6; accepted: at most the 5 tokens"
        ):
            make_prompt(QUESTION, [], BYTES, 5)


POOL = [Example(str(i), ("a", "b"), i % 2) for i in range(8)]


class TestDrawDemonstrations:
    @given(count=st.integers(0, 7), seed=st.integers(0, 2**32), number=st.integers(0, 7))
    def test_they_are_different_and_never_the_question(self, count, seed, number):
        drawn = draw_demonstrations(POOL, POOL[number], count, seed, number)
        assert len(drawn) == len(set(drawn)) == count
        assert POOL[number] not in drawn
        assert draw_demonstrations(POOL, POOL[number], count, seed, number) == drawn

    def test_a_copy_of_the_question_is_not_drawn_either(self):
        twice = [*POOL, Example("3", ("a", "b"), 1)]
        for seed in range(20):
            assert Example("3", ("a", "b"), 1) not in draw_demonstrations(twice, POOL[3], 7, seed, 3)

    def test_fewer_are_the_last_of_more(self):
        assert draw_demonstrations(POOL, POOL[0], 2, 5, 0) == draw_demonstrations(POOL, POOL[0], 6, 5, 0)[-2:]

    def test_each_question_and_each_seed_has_its_own(self):
        drawn = {tuple(draw_demonstrations(POOL, POOL[0], 3, seed, n)) for seed in range(4) for n in range(4)}
        assert len(drawn) > 12

    def test_all_are_drawn_alike(self):
        """800 draws of one of eight: each within five standard deviations of 100."""
        question = Example("other", ("a", "b"))
        drawn = [draw_demonstrations(POOL, question, 1, 0, number)[0].context for number in range(800)]
        assert all(abs(drawn.count(str(i)) - 100) < 47 for i in range(8))

    def test_too_few_is_an_error(self):
        with pytest.raises(ConfigError, match="shots is 8; accepted: at most 7"):
            draw_demonstrations(POOL, POOL[0], 8, 0, 0)
