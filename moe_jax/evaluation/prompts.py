"""Prompts of k solved examples before a question, as tokens to read and tokens to score.

Brown et al. 2020, GPT-3, section 2.4; Du et al. 2021, GLaM, section 5.

Axes: P tokens that are read, N tokens that are scored.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from moe_jax.configuration import require
from moe_jax.data.tokenization import Tokenizer
from moe_jax.evaluation.examples import Example

SEPARATOR = "\n\n"
"""Between the examples of a prompt, as in GPT-3 and GLaM."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens to score and the tokens before them.

    Attributes:
      prefix: [P], at least one; the boundary that begins a document is the first, unless it was cut off.
      scored: [N], at least one.
    """

    prefix: Int32[np.ndarray, "P"]
    scored: Int32[np.ndarray, "N"]

    @property
    def inputs(self) -> int:
        """Tokens that a model has to read: all but the last one."""
        return len(self.prefix) + len(self.scored) - 1


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Question with the demonstrations before it, in tokens.

    Attributes:
      spans: one for each choice, with the same prefix.
      demonstrations: number of solved examples before the question.
      truncated: whether the question itself was cut from the left.
    """

    spans: tuple[Span, ...]
    demonstrations: int
    truncated: bool


def choice_spans(context: str, choices: Sequence[str], tokenizer: Tokenizer) -> list[Span]:
    """Encodes a context with each of `choices` after it.

    A piece of a byte-pair encoding may reach across the end of the context: text is encoded whole, as in training, for
    a model hardly ever saw the pieces that two halves give. What is scored begins with the first token that reaches
    beyond the context, or that not all choices have in common; so all are scored as continuations of the same tokens,
    and each score includes the same end of the context, if any. With bytes as tokens it is the choice alone.

    Args:
      context: the text before, maybe empty.
      choices: texts, none empty.
      tokenizer: the model's.
    """
    whole = [tokenizer.encode(context + choice) for choice in choices]
    end = len(context.encode())
    within = min(int((np.cumsum(tokenizer.token_bytes[ids]) <= end).sum()) for ids in whole)
    heads = np.stack([ids[:within] for ids in whole])
    common = int(np.cumprod((heads == heads[:1]).all(axis=0)).sum())
    prefix = np.concatenate([[tokenizer.boundary_id], whole[0][:common]]).astype(np.int32)
    return [Span(prefix, ids[common:]) for ids in whole]


def make_prompt(example: Example, demonstrations: Sequence[Example], tokenizer: Tokenizer, max_tokens: int) -> Prompt:
    """Makes a prompt of as many demonstrations as fit into `max_tokens`, and the question.

    Demonstrations at the front are left out first, each whole. If the question does not fit by itself, its beginning is
    cut off, the same for all choices.

    Args:
      example: the question.
      demonstrations: solved examples, in order.
      tokenizer: the model's.
      max_tokens: that a model reads.

    Raises:
      ConfigError: a choice by itself is longer than that.
    """
    solved = [demonstration.solved + SEPARATOR for demonstration in demonstrations]
    for first in range(len(solved) + 1):
        spans = choice_spans("".join(solved[first:]) + example.context, example.choices, tokenizer)
        if all(span.inputs <= max_tokens for span in spans):
            return Prompt(tuple(spans), len(solved) - first, False)
    longest = max(len(span.scored) for span in spans)
    accepted = f"at most the {max_tokens} tokens of the model's sequences"
    require(longest <= max_tokens, f"tokens of a choice that follows {example.context[-40:]!r}", longest, accepted)
    kept = spans[0].prefix[-(max_tokens + 1 - longest) :]
    return Prompt(tuple(Span(kept, span.scored) for span in spans), 0, True)


def draw_demonstrations(pool: Sequence[Example], example: Example, count: int, seed: int, number: int) -> list[Example]:
    """Draws examples of `pool` without replacement, and never `example` itself.

    The last one is drawn first, so that fewer demonstrations are the end of more.

    Args:
      pool: what to draw from.
      example: the question, which must not come with its answer.
      count: how many.
      seed: of the draws.
      number: of the question in its task; each has draws of its own.

    Raises:
      ConfigError: the pool has fewer.
    """
    order = np.random.default_rng([seed, number]).permutation(len(pool)) if count else []
    drawn = []
    for place in order:
        if len(drawn) == count:
            break
        if pool[place] != example:
            drawn.append(pool[place])
    require(len(drawn) == count, "shots", count, f"at most {len(drawn)}, the demonstrations there are for an example")
    return drawn[::-1]
