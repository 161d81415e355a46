"""Lengths of texts with hidden spans. N tokens of a text."""

from typing import NamedTuple


class Lengths(NamedTuple):
    """Lengths of the parts of a corrupted text, the same for every text of N tokens.

    Attributes:
      text: N.
      hidden: number of tokens in hidden spans.
      spans: number of hidden spans, and of sentinels.
    """

    text: int
    hidden: int
    spans: int

    @property
    def inputs(self) -> int:
        """Length of the encoder's text: the tokens that stay, a sentinel for each span, and the end."""
        return self.text - self.hidden + self.spans + 1

    @property
    def targets(self) -> int:
        """Length of the decoder's text: the spans, a sentinel before each, and the end."""
        return self.hidden + self.spans + 1


def corrupted_lengths(text: int, rate: float, mean_span: float) -> Lengths:
    """Returns the lengths for a text of at least two tokens; at least one is hidden and at least one stays."""
    hidden = min(max(round(text * rate), 1), text - 1)
    spans = min(max(round(hidden / mean_span), 1), text - hidden)
    return Lengths(text, hidden, spans)


def longest_text(inputs: int, rate: float, mean_span: float) -> Lengths:
    """Returns the lengths for the longest text whose corrupted form has at most `inputs` (at least 4) tokens."""
    text = 2
    while corrupted_lengths(text + 1, rate, mean_span).inputs <= inputs:
        text += 1
    return corrupted_lengths(text, rate, mean_span)
