"""Lengths of texts of which spans are hidden. N tokens of a text."""

from typing import NamedTuple


class Lengths(NamedTuple):
    """How many tokens of a text of a given length are where, the same for every text.

    Attributes:
      text: N.
      hidden: tokens in spans.
      spans: how many spans, and sentinels.
    """

    text: int
    hidden: int
    spans: int

    @property
    def inputs(self) -> int:
        """What is left of the text, a sentinel for each span, and the end."""
        return self.text - self.hidden + self.spans + 1

    @property
    def targets(self) -> int:
        """The spans, each after its sentinel, and the end."""
        return self.hidden + self.spans + 1


def corrupted_lengths(text: int, rate: float, mean_span: float) -> Lengths:
    """Of a text of at least two tokens, some of it hidden and some not."""
    hidden = min(max(round(text * rate), 1), text - 1)
    spans = min(max(round(hidden / mean_span), 1), text - hidden)
    return Lengths(text, hidden, spans)


def longest_text(inputs: int, rate: float, mean_span: float) -> Lengths:
    """Of the longest text whose corrupted form has at most `inputs` tokens (at least 4)."""
    text = 2
    while corrupted_lengths(text + 1, rate, mean_span).inputs <= inputs:
        text += 1
    return corrupted_lengths(text, rate, mean_span)
