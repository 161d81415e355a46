"""Questions made of a corpus's own documents, so that a model trained on it can be tested without a download."""

import keyword
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moe_jax.configuration import require, require_name
from moe_jax.data.documents import Corpus
from moe_jax.evaluation.examples import Example

CHOICES = 4
"""Number of choices of `continuation`, with the right one."""

SHORTEST_LINE = 12
"""Least length of a line that can be a choice, in characters without indentation; shorter lines fit anywhere."""

LIKE_LENGTH = 0.2
"""Largest relative difference in length between a wrong line and the right one."""

DEMONSTRATION_DOCUMENTS = 300
"""Number of training documents, at equal distances, from which demonstrations are made."""

# A name of at least four characters at the end of a line, and not the end of a longer name.
LAST_WORD = re.compile(r"(?<!\w)[^\W\d]\w{3,}$")


def continuation(documents: Sequence[str], count: int, lines: int = 4, seed: int = 0) -> list[Example]:
    """Makes multiple-choice questions: which line comes next?

    The context is `lines` whole lines of a document. The choices are the line that follows and three lines of other
    documents. These have the same indentation and, within `LIKE_LENGTH`, the same length, so that neither gives the
    answer away. All four choices are different, in random order, so chance is a quarter. Choices do not include the
    line end, because the text after it is unknown.

    Args:
      documents: texts of one split.
      count: number of examples, drawn without replacement from all lines that can make one.
      lines: lines of a context.
      seed: seed of the draws.

    Raises:
      ConfigError: the documents do not give `count` examples.
    """
    follow = [(number, i) for number, text in enumerate(documents) for i in _lines_to_choose(text, lines)]
    texts = [text.split("\n") for text in documents]
    by_indentation: dict[str, list[tuple[int, str]]] = {}
    for number, i in follow:
        line = texts[number][i]
        by_indentation.setdefault(_indentation(line), []).append((number, line))

    def make(place: tuple[int, int], rng: np.random.Generator) -> Example | None:
        number, i = place
        right = texts[number][i]
        wrong = _draw_like(right, number, by_indentation[_indentation(right)], rng)
        if wrong is None:
            return None
        answer = int(rng.integers(CHOICES))
        context = "\n".join(texts[number][i - lines : i]) + "\n"
        return Example(context, (*wrong[:answer], right, *wrong[answer:]), answer)

    return _draw_examples("continuation", follow, make, count, seed)


def last_word(documents: Sequence[str], count: int, lines: int = 4, seed: int = 0) -> list[Example]:
    """Makes cloze questions: which word ends this line? After LAMBADA (Paperno et al. 2016).

    The context is `lines` lines of a document without the last word. That word has at least four letters, digits or
    underscores, is no keyword of Python, and also stands earlier in the context. So the context holds the answer, but
    hardly ever a single candidate. The answer does not include the line end.

    Args, raises: see `continuation`.
    """
    texts = [text.split("\n") for text in documents]

    def passage(number: int, i: int) -> tuple[str, str] | None:
        found = LAST_WORD.search(texts[number][i])
        if found is None or keyword.iskeyword(found[0]) or not texts[number][i - lines + 1].strip():
            return None
        context = "\n".join([*texts[number][i - lines + 1 : i], texts[number][i][: found.start()]])
        earlier = re.search(rf"(?<!\w){re.escape(found[0])}(?!\w)", context)
        return None if earlier is None else (context, found[0])

    # The last piece of a text is no line that ends.
    places = [(number, i) for number, pieces in enumerate(texts) for i in range(lines - 1, len(pieces) - 1)]
    places = [place for place in places if passage(*place) is not None]

    def make(place: tuple[int, int], rng: np.random.Generator) -> Example | None:
        context, word = passage(*place)
        return Example(context, (word,))

    return _draw_examples("last_word", places, make, count, seed)


CORPUS_TASKS: dict[str, Callable[..., list[Example]]] = {"continuation": continuation, "last_word": last_word}


def corpus_task(name: str, corpus: Corpus, count: int, lines: int = 4) -> tuple[list[Example], list[Example]]:
    """Makes the examples of a task and as many demonstrations.

    Examples come from validation documents and demonstrations from training documents. Two passages of one document
    may overlap, and then one would hold the other's answer.

    Args:
      name: a name in CORPUS_TASKS.
      corpus: the source of the documents.
      count: number of examples.
      lines: lines of a context.

    Raises:
      ConfigError: no such task, or the documents do not give `count` examples.
    """
    require_name(name, CORPUS_TASKS, "corpus task")
    require(lines >= 1, "lines", lines, "an integer of at least 1")
    examples = CORPUS_TASKS[name](list(corpus.documents("validation")), count, lines)
    train = list(corpus.documents("train"))
    train = train[:: max(1, len(train) // DEMONSTRATION_DOCUMENTS)]
    return examples, CORPUS_TASKS[name](train, count, lines)


def _lines_to_choose(text: str, lines: int) -> Iterator[int]:
    """Yields the numbers of lines that can be a choice: long enough, after `lines` others that begin with text."""
    pieces = text.split("\n")
    for i in range(lines, len(pieces) - 1):
        if len(pieces[i].strip()) >= SHORTEST_LINE and pieces[i - lines].strip():
            yield i


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _draw_like(
    right: str, number: int, candidates: Sequence[tuple[int, str]], rng: np.random.Generator
) -> list[str] | None:
    """Draws lines of other documents than `number`, nearly as long as `right`; None if there are too few."""
    drawn: dict[str, None] = {}
    for i in rng.permutation(len(candidates)):
        other, line = candidates[i]
        like = abs(len(line) - len(right)) <= LIKE_LENGTH * len(right)
        if other != number and like and line.strip() != right.strip():
            drawn[line] = None
        if len(drawn) == CHOICES - 1:
            return list(drawn)
    return None


def _draw_examples(
    name: str,
    places: Sequence[tuple[int, int]],
    make: Callable[[tuple[int, int], np.random.Generator], Example | None],
    count: int,
    seed: int,
) -> list[Example]:
    """Makes `count` examples from places in random order, passing over places from which `make` makes none."""
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    for i in rng.permutation(len(places)):
        if len(examples) == count:
            break
        example = make(places[i], rng)
        if example is not None:
            examples.append(example)
    possible = len(examples)
    accepted = f"at least 1 and at most {possible}, all that the documents give for {name}"
    require(1 <= count <= possible, "examples", count, accepted)
    return examples
