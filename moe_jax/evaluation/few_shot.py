"""Zero-, one- and few-shot results of a trained decoder, as GPT-3 (Brown et al. 2020) and GLaM (Du et al. 2021) ask.

C choices of an example.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from moe_jax.configuration import require
from moe_jax.data.documents import Corpus
from moe_jax.data.pipeline import token_digest, tokenizer_of
from moe_jax.data.tokenization import Tokenizer
from moe_jax.evaluation.examples import Example
from moe_jax.evaluation.prompts import Prompt, draw_demonstrations, make_prompt
from moe_jax.evaluation.scoring import ScoreSpans, SpanScore, make_scorer
from moe_jax.statistics.estimates import estimate
from moe_jax.statistics.intervals import proportion_interval
from moe_jax.training.trained import TrainedRun

Normalisation = Literal["sum", "per_token", "per_byte", "unconditional"]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Trained decoder with its tokenizer, ready to score text.

    Attributes:
      tokenizer: the model's.
      max_tokens: the longest sequence it reads.
      score: the function of `make_scorer`.
    """

    tokenizer: Tokenizer
    max_tokens: int
    score: ScoreSpans


@dataclasses.dataclass(frozen=True)
class Asked:
    """Question with its prompt and the score of each choice.

    Attributes:
      example: the question.
      prompt: with its demonstrations, in tokens.
      scores: of each choice's span.
    """

    example: Example
    prompt: Prompt
    scores: tuple[SpanScore, ...]

    @property
    def right(self) -> SpanScore:
        """The score of the right continuation."""
        return self.scores[self.example.answer]

    @property
    def totals(self) -> Float[np.ndarray, "C"]:
        """Log-probability of each choice, in nats."""
        return np.array([score.total for score in self.scores])


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """Results of a model on a task.

    Attributes:
      examples: number of scored examples.
      accuracy: share of them that are right.
      interval: Wilson's 95 % confidence interval of it, over examples.
      chance: the accuracy of a guess; None for cloze.
      mean_reciprocal_rank: mean of 1 / rank of the right choice; None for cloze.
      perplexity: exp of the mean nats of a token of the right continuation.
      bits_per_byte: of the right continuation, independent of the tokenizer.
      demonstrations: mean number of demonstrations in a prompt.
      truncated: examples whose own context was cut.
    """

    examples: int
    accuracy: float
    interval: tuple[float, float]
    chance: float | None
    mean_reciprocal_rank: float | None
    perplexity: float
    bits_per_byte: float
    demonstrations: float
    truncated: int


def scorer_of(run: TrainedRun, corpus: Corpus, batch_size: int = 16) -> Scorer:
    """Makes the scorer of a trained run.

    Args:
      run: the result of `load_run`.
      corpus: the corpus that it was trained on.
      batch_size: sequences that are scored at once.

    Raises:
      ConfigError: the corpus is no longer what it was, so its tokenizer may be another; or see `scoring_config`.
    """
    tokenizer = tokenizer_of(run.config.data, corpus)
    run.require_corpus(corpus.name, token_digest(corpus.digest, tokenizer))
    max_tokens = run.config.data.sequence_length
    state = run.state
    score = make_scorer(run.config.model, state.params, state.router_state, max_tokens, batch_size)
    return Scorer(tokenizer, max_tokens, score)


def score_task(
    scorer: Scorer,
    examples: Sequence[Example],
    pool: Sequence[Example],
    shots: int,
    seed: int = 0,
    normalisation: Normalisation = "per_token",
    neutral: str = "Answer:",
) -> TaskScore:
    """Asks each question after demonstrations of its own, drawn from `pool`.

    The answer to a multiple-choice question is the choice with the highest score; a tie with the right choice counts as
    wrong. A cloze is right if every token of the text is the most probable one after those before it, so that
    greedy decoding gives the text.

    Args:
      scorer: the model.
      examples: the questions, all multiple choice or all cloze.
      pool: solved examples; may be `examples`, as no question comes with its own answer.
      shots: k, demonstrations for each question.
      seed: of their draws.
      normalisation: of the choices' scores, see `choice_scores`.
      neutral: the context of `unconditional`.

    Raises:
      ConfigError: the pool has too few, or a choice is longer than the model's sequences.
    """
    require(shots >= 0, "shots", shots, "an integer of at least 0")
    drawn = [draw_demonstrations(pool, example, shots, seed, number) for number, example in enumerate(examples)]
    asked = ask(scorer, examples, drawn)
    if len(examples[0].choices) == 1:
        return _summary(scorer, asked, [bool(one.right.greedy.all()) for one in asked], None)
    unconditional: list[Asked] | list[None] = [None] * len(asked)
    if normalisation == "unconditional":
        questions = [dataclasses.replace(example, context=neutral) for example in examples]
        unconditional = ask(scorer, questions, [[]] * len(questions))
    scores = [
        choice_scores(one, scorer.tokenizer.token_bytes, normalisation, without)
        for one, without in zip(asked, unconditional, strict=True)
    ]
    ranks = [rank_of(values, example.answer) for values, example in zip(scores, examples, strict=True)]
    return _summary(scorer, asked, [rank == 1 for rank in ranks], ranks)


def score_rows(
    scorer: Scorer,
    examples: Sequence[Example],
    pool: Sequence[Example],
    shots: Sequence[int],
    seeds: Sequence[int],
    normalisation: Normalisation = "per_token",
    neutral: str = "Answer:",
) -> list[dict[str, Any]]:
    """Runs `score_task` for each number of shots and each seed, and returns rows of a table.

    Several seeds get one more row: means, with a Student interval of the mean accuracy. That interval is about the
    draws of demonstrations alone, because all seeds ask the same questions.

    Args:
      shots: each k; of 0, where nothing is drawn, there is one row.
      seeds: of the draws.
      scorer, examples, pool, normalisation, neutral: see `score_task`.

    Returns:
      Rows with the fields of `TaskScore`, and `shots`, `seeds` that the row is about, and `normalisation`.
    """
    rows = []
    for k in shots:
        scores = [
            dataclasses.asdict(score_task(scorer, examples, pool, k, seed, normalisation, neutral))
            for seed in (seeds if k else seeds[:1])
        ]
        of = {"shots": k, "normalisation": normalisation if len(examples[0].choices) > 1 else None}
        rows += [of | {"seeds": [seed] if k else []} | row for seed, row in zip(seeds, scores, strict=False)]
        if len(scores) > 1:
            rows.append(of | {"seeds": list(seeds)} | _mean(scores))
    return rows


def _mean(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over seeds, with the interval of the mean accuracy."""
    means = dict(scores[0])
    for name, value in means.items():
        if isinstance(value, float):
            means[name] = float(np.mean([score[name] for score in scores]))
    return means | {"interval": estimate([score["accuracy"] for score in scores]).interval}


def ask(scorer: Scorer, examples: Sequence[Example], demonstrations: Sequence[Sequence[Example]]) -> list[Asked]:
    """Scores every choice of every example after its own `demonstrations`."""
    prompts = [
        make_prompt(example, before, scorer.tokenizer, scorer.max_tokens)
        for example, before in zip(examples, demonstrations, strict=True)
    ]
    scores = iter(scorer.score([span for prompt in prompts for span in prompt.spans]))
    return [
        Asked(example, prompt, tuple(next(scores) for _ in prompt.spans))
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def choice_scores(
    asked: Asked,
    token_bytes: Int[np.ndarray, "V"],
    normalisation: Normalisation,
    unconditional: Asked | None = None,
) -> Float[np.ndarray, "C"]:
    """Computes the scores by which choices are compared, in nats.

    Args:
      asked: the choices in their context.
      token_bytes: of each token of the vocabulary.
      normalisation: `sum`: the log-probability log P(choice | context); `per_token`, `per_byte`: the same for each
        token or byte that was scored, lest long choices lose for their length; `unconditional`: log P(choice | context)
        - log P(choice | neutral context), lest rare ones lose for their rareness (GPT-3, section 2.4).
      unconditional: the choices in a neutral context, for `unconditional`.
    """
    if normalisation == "unconditional":
        return asked.totals - unconditional.totals
    scored = [span.scored for span in asked.prompt.spans]
    lengths = {
        "sum": np.ones(len(scored)),
        "per_token": np.array([len(ids) for ids in scored]),
        "per_byte": np.array([token_bytes[ids].sum() for ids in scored]),
    }
    return asked.totals / lengths[normalisation]


def rank_of(scores: Float[np.ndarray, "C"], answer: int) -> int:
    """Returns the rank of the right choice, from 1; ties come before it, and so do all others if its score is NaN."""
    return len(scores) - int((scores < scores[answer]).sum())


def _summary(scorer: Scorer, asked: Sequence[Asked], hits: Sequence[bool], ranks: Sequence[int] | None) -> TaskScore:
    nats = -sum(one.right.total for one in asked)
    scored = np.concatenate([one.prompt.spans[one.example.answer].scored for one in asked])
    return TaskScore(
        examples=len(asked),
        accuracy=sum(hits) / len(asked),
        interval=proportion_interval(sum(hits), len(asked)),
        chance=None if ranks is None else float(np.mean([1 / len(one.scores) for one in asked])),
        mean_reciprocal_rank=None if ranks is None else float(np.mean([1 / rank for rank in ranks])),
        perplexity=math.exp(nats / len(scored)),
        bits_per_byte=nats / math.log(2) / int(scorer.tokenizer.token_bytes[scored].sum()),
        demonstrations=float(np.mean([one.prompt.demonstrations for one in asked])),
        truncated=sum(one.prompt.truncated for one in asked),
    )
