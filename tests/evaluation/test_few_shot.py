"""Tasks asked of made-up models whose answers are known."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from moe_jax.configuration import ConfigError
from moe_jax.data.documents import Corpus
from moe_jax.data.tokenization import ByteTokenizer
from moe_jax.evaluation.examples import Example
from moe_jax.evaluation.few_shot import (
    Asked,
    Scorer,
    TaskScore,
    choice_scores,
    rank_of,
    score_rows,
    score_task,
    scorer_of,
)
from moe_jax.evaluation.prompts import Prompt, Span
from moe_jax.evaluation.scoring import SpanScore
from moe_jax.training.state import TrainState
from moe_jax.training.trained import TrainedRun
from tests.training.tiny_runs import tiny_config

BYTES = ByteTokenizer()


def scorer(nats, greedy=lambda read, said: True, max_tokens=1000):
    """A model that gives each letter of a text `said` after what it `read` as many nats as `nats` says."""

    def score(spans):
        scores = []
        for span in spans:
            texts = BYTES.decode(span.prefix), BYTES.decode(span.scored)
            letters = np.full(len(span.scored), -nats(*texts), np.float32)
            scores.append(SpanScore(letters, np.full(len(span.scored), greedy(*texts))))
        return scores

    return Scorer(BYTES, max_tokens, score)


NUMBERS = [Example(f"{i}+1=", (f"{i + 1}", f"{i + 2}", "0"), 0) for i in range(8)]


def knows(read, said):
    """Who can add."""
    question = read.rpartition("\n")[2]
    return 0.5 if int(question.partition("+")[0]) + 1 == int(said) else 2.0


class TestMultipleChoice:
    def test_who_can_add_is_always_right(self):
        score = score_task(scorer(knows), NUMBERS, NUMBERS, shots=0)
        assert (score.accuracy, score.mean_reciprocal_rank, score.examples) == (1.0, 1.0, 8)
        assert score.chance == pytest.approx(1 / 3)
        assert score.interval == pytest.approx(tuple(stats.binomtest(8, 8).proportion_ci(0.95, method="wilson")))
        assert score.perplexity == pytest.approx(math.exp(0.5))
        assert score.bits_per_byte == pytest.approx(0.5 / math.log(2))

    def test_who_can_learn_does_with_a_shot(self):
        """Knows the answer only if a solved example was read."""

        def learns(read, said):
            return knows(read, said) if "\n" in read else 1.0

        before, after = (score_task(scorer(learns), NUMBERS, NUMBERS, shots) for shots in (0, 1))
        assert (before.accuracy, before.mean_reciprocal_rank, before.demonstrations) == (0.0, pytest.approx(1 / 3), 0)
        assert (after.accuracy, after.demonstrations) == (1.0, 1)

    def test_ranks_are_those_of_scipy(self):
        """The right choice comes first, second and third of three."""
        nats = {"right": 1.0, "other": 0.5, "again": 0.7}
        names = list(nats)
        examples = [
            Example("a", ("right", "wrong", "worse"), 0),
            Example("b", ("other", "right", "wrong"), 1),
            Example("c", ("other", "again", "right"), 2),
        ]
        score = score_task(scorer(lambda read, said: nats.get(said, 3.0)), examples, examples, 0)
        places = [1.0, stats.rankdata([nats[names[1]], nats["right"]])[1], stats.rankdata([0.5, 0.7, 1.0])[2]]
        assert places == [1, 2, 3]
        assert score.mean_reciprocal_rank == pytest.approx(np.mean(1 / np.array(places)))
        assert score.accuracy == pytest.approx(1 / 3)

    def test_prompts_that_are_too_long_are_counted(self):
        score = score_task(scorer(knows, max_tokens=13), NUMBERS, NUMBERS, shots=3)
        assert (score.demonstrations, score.truncated) == (1.0, 0)
        cut = score_task(scorer(lambda read, said: 1.0, max_tokens=4), NUMBERS, NUMBERS, shots=3)
        assert (cut.demonstrations, cut.truncated) == (0.0, 8)


def test_a_cloze_is_right_if_every_token_is_greedy():
    words = [Example(f"{i} ", ("word" if i % 4 else "other",)) for i in range(8)]
    model = scorer(lambda read, said: 0.25, greedy=lambda read, said: said == "word")
    score = score_task(model, words, words, 2)
    assert (score.accuracy, score.chance, score.mean_reciprocal_rank) == (0.75, None, None)
    assert score.perplexity == pytest.approx(math.exp(0.25))

    def all_but_one(spans):
        return [dataclasses.replace(one, greedy=np.arange(len(one.greedy)) != 1) for one in model.score(spans)]

    assert score_task(dataclasses.replace(model, score=all_but_one), words, words, 0).accuracy == 0.0


def asked(*nats):
    """Choices of one, one and three tokens, of one, two and three bytes, with so many nats in all."""
    tokens = {"a": [1], "bb": [2], "ccc": [1, 1, 1]}
    spans = tuple(Span(np.zeros(1, np.int32), np.array(ids, np.int32)) for ids in tokens.values())
    scores = tuple(
        SpanScore(np.full(len(ids), -total / len(ids), np.float32), np.zeros(len(ids), bool))
        for ids, total in zip(tokens.values(), nats, strict=True)
    )
    return Asked(Example("", tuple(tokens), 1), Prompt(spans, 0, False), scores)


class TestNormalisations:
    @pytest.mark.parametrize(
        ("normalisation", "expected"),
        [
            ("sum", [-1, -3, -6]),
            ("per_token", [-1, -3, -2]),
            ("per_byte", [-1, -1.5, -2]),
            ("unconditional", [1, -1, 3]),
        ],
    )
    def test_by_hand(self, normalisation, expected):
        without = asked(2, 2, 9) if normalisation == "unconditional" else None
        scores = choice_scores(asked(1, 3, 6), np.array([0, 1, 2], np.int32), normalisation, without)
        np.testing.assert_allclose(scores, expected, rtol=1e-6)

    def test_each_may_choose_another(self):
        """One long and one short choice, of which the short one is likely whatever the context."""
        nats = {("q", "x"): 1.0, ("q", "long"): 0.5, ("Answer:", "x"): 0.1, ("Answer:", "long"): 0.6}
        model = scorer(lambda read, said: nats[read, said])
        example = [Example("q", ("x", "long"), 1)]
        accuracy = {name: score_task(model, example, example, 0, 0, name).accuracy for name in ("sum", "per_token")}
        assert accuracy == {"sum": 0.0, "per_token": 1.0}
        # 4 * (0.6 - 0.5) above 0.1 - 1.
        assert score_task(model, example, example, 0, 0, "unconditional").accuracy == 1.0
        nats[("", "x")], nats[("", "long")] = 2.0, 0.5
        assert score_task(model, example, example, 0, 0, "unconditional", neutral="").accuracy == 0.0


@pytest.mark.parametrize(
    ("scores", "rank"), [([3.0, 1.0, 2.0], 1), ([1.0, 2.0, 0.0], 2), ([1.0, 1.0, 0.0], 2), ([np.nan, 1.0, 2.0], 3)]
)
def test_ties_and_nan_count_against_the_right_choice(scores, rank):
    assert rank_of(np.array(scores), 0) == rank


class TestRows:
    def test_one_for_each_seed_and_their_mean(self):
        """A model that the drawn example helps or does not."""

        def model(read, said):
            return knows(read, said) if int(read[0]) % 2 else -knows(read, said)

        rows = score_rows(scorer(model), NUMBERS, NUMBERS, [0, 1], [3, 4, 5])
        assert [(row["shots"], row["seeds"]) for row in rows] == [
            (0, []),
            (1, [3]),
            (1, [4]),
            (1, [5]),
            (1, [3, 4, 5]),
        ]
        *_, first, second, third, mean = rows
        accuracies = [row["accuracy"] for row in (first, second, third)]
        assert len(set(accuracies)) > 1
        assert mean["accuracy"] == pytest.approx(np.mean(accuracies))
        interval = stats.t.interval(0.95, 2, np.mean(accuracies), stats.sem(accuracies))
        assert mean["interval"] == pytest.approx(interval)
        assert mean["mean_reciprocal_rank"] == pytest.approx(
            np.mean([row["mean_reciprocal_rank"] for row in (first, second, third)])
        )
        assert {row["normalisation"] for row in rows} == {"per_token"}
        assert {frozenset(row) for row in rows} == {
            frozenset({"shots", "seeds", "normalisation", *(field.name for field in dataclasses.fields(TaskScore))})
        }
        again = score_task(scorer(model), NUMBERS, NUMBERS, 1, 4)
        assert second == dataclasses.asdict(again) | {"shots": 1, "seeds": [4], "normalisation": "per_token"}

    def test_one_seed_has_no_mean_and_a_cloze_no_normalisation(self):
        words = [Example(str(i), ("a",)) for i in range(3)]
        rows = score_rows(scorer(lambda read, said: 1.0), words, words, [1], [0])
        assert [(row["seeds"], row["normalisation"]) for row in rows] == [([0], None)]


def test_shots_are_not_negative():
    with pytest.raises(ConfigError, match="shots is -1; accepted: an integer of at least 0"):
        score_task(scorer(knows), NUMBERS, NUMBERS, -1)


def test_another_corpus_may_have_another_tokenizer_and_is_refused():
    run = TrainedRun(tiny_config(), TrainState(0, {}, {}, {}, None), "0123456789abcdef")
    with pytest.raises(ConfigError, match=r"with digest fedcba; accepted: .* digest 0123456789ab$"):
        scorer_of(run, Corpus("text", "fedcba", lambda split: iter([])))
