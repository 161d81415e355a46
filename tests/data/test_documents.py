"""Splits and digests of documents, and where a single text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from moe_jax.data import documents as docs


def test_the_share_of_documents_that_validate_is_the_fraction_asked_for():
    splits = [docs.split_by_content(docs.content_digest(str(i).encode()), 0.2) for i in range(5000)]
    assert 0.17 < splits.count("validation") / 5000 < 0.23


def test_a_larger_fraction_only_adds_documents_to_validation():
    digests = [docs.content_digest(str(i).encode()) for i in range(200)]
    small, large = ({d for d in digests if docs.split_by_content(d, f) == "validation"} for f in (0.1, 0.3))
    assert small < large


def test_the_digest_of_a_corpus_depends_on_every_part_of_it_but_not_on_the_order():
    entries = [("a.py", "11", "train"), ("b.py", "22", "validation")]
    assert docs.corpus_digest(entries) == docs.corpus_digest(entries[::-1])
    changed = [("c.py", "11", "train"), ("a.py", "12", "train"), ("a.py", "11", "validation")]
    assert len({docs.corpus_digest([first, entries[1]]) for first in [entries[0], *changed]}) == 4


def test_the_tail_begins_after_a_paragraph_else_after_a_line_else_where_the_fraction_says():
    words = "word " * 40
    assert docs.tail_boundary(words + "\n\n" + words, 0.5) == len(words) + 2
    assert docs.tail_boundary(words + "\n" + words, 0.5) == len(words) + 1
    assert docs.tail_boundary(words, 0.25) == 150


@given(st.text(alphabet="ab\n", min_size=4), st.floats(0.01, 0.99))
def test_the_tail_is_between_half_and_all_of_the_fraction_asked_for(text, fraction):
    tail = round(len(text) * fraction)
    assert tail / 2 <= len(text) - docs.tail_boundary(text, fraction) <= tail
