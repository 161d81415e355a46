"""Scores of given tokens: those of the model's logits on the very sequence, whatever the batch they come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from moe_jax.configuration import ConfigError
from moe_jax.evaluation.prompts import Span
from moe_jax.evaluation.scoring import _score_tokens, make_scorer, padded_length, scoring_config
from moe_jax.models.decoder import Decoder
from moe_jax.models.parameters import init_router_state
from moe_jax.routing import ROUTERS
from tests.models import small

MAX_TOKENS = 40
# A capacity that would drop half of the tokens, and groups of several sequences.
TIGHT = {"capacity_factor": 0.5, "group_size": 80}


def spans(seed=0, every_length=True):
    """Spans of all padded lengths, or of the shortest and longest; some of them need no padding."""
    rng = np.random.default_rng(seed)
    lengths = [(1, 1), (16, 1), (10, 7), (3, 38), *([(9, 10), (5, 14)] if every_length else [])]
    return [Span(*(rng.integers(0, small.VOCAB, n).astype(np.int32) for n in pair)) for pair in lengths]


def sharp(config):
    """Parameters of order 1, so that tokens differ in their probabilities and routers in their decisions."""
    return jax.tree.map(lambda x: 3.0 * x, small.start(config))


def logits_alone(config):
    """The logits of one sequence [S] without padding: [S, V]."""
    variables = {"params": sharp(config), "router_state": init_router_state(config)}
    apply = jax.jit(lambda ids: Decoder(config).apply(variables, ids[None])[0])
    return lambda ids: np.asarray(apply(jnp.asarray(ids, jnp.int32)), np.float64)


def scorer(config, batch_size=4):
    return make_scorer(config, sharp(config), init_router_state(config), MAX_TOKENS, batch_size)


MODELS = {
    "dense": small.config(),
    "t5": small.config(attention={"positions": "t5"}),
    "scanned": small.config({"router": "switch"} | TIGHT, scan_layers=True, moe_layers=(0, 1)),
    "chunked": small.config(loss_chunk=5),
    "switch": small.config({"router": "switch"} | TIGHT),
    "rule": small.config({"router": "switch", "capacity_rule": "mesh_tensorflow"} | TIGHT),
    "eval_capacity": small.config({"router": "switch", "eval_capacity_factor": 0.25}),
    "gshard": small.config({"router": {"kind": "gshard", "second_policy": "all"}, "k": 2} | TIGHT),
    "priority": small.config({"router": {"kind": "vmoe", "priority": "batch"}, "k": 2, "capacity_factor": None}),
    "deepseek": small.config({"router": "deepseek", "k": 2} | TIGHT),
    "depth": small.config(depth={"layers": (0,), "capacity": 0.5}),
}


@pytest.mark.parametrize("name", MODELS)
def test_they_are_numpys_of_the_logits_on_the_sequence_alone(name):
    score, logits_of = scorer(MODELS[name]), logits_alone(scoring_config(MODELS[name]))
    # Each length is a program.
    texts = spans(every_length=name in ("dense", "switch"))
    for span, scored in zip(texts, score(texts), strict=True):
        logits = logits_of(np.concatenate([span.prefix, span.scored])[:-1])[len(span.prefix) - 1 :]
        expected = log_softmax(logits, axis=-1)[np.arange(len(span.scored)), span.scored]
        assert scored.log_probabilities.dtype == np.float32
        np.testing.assert_allclose(scored.log_probabilities, expected, rtol=2e-4, atol=2e-5)
        np.testing.assert_array_equal(scored.greedy, logits.argmax(axis=-1) == span.scored)
        assert scored.total == pytest.approx(expected.sum(), rel=1e-4)


# Of the others nothing is scored.
SCORED = [name for name in ROUTERS if name not in ("base", "sinkhorn", "expert_choice", "soft_moe")]


@pytest.mark.parametrize("router", SCORED)
def test_no_score_depends_on_neighbours(router):
    """Each text with others, in another order, and alone: also where a router draws, as gshard does by itself."""
    k = {"switch": 1, "hash": 1, "dense_mixture": 4}.get(router, 2)
    factor = 0.5 if ROUTERS[router].drops else None
    score = scorer(small.config({"router": router, "k": k, "capacity_factor": factor, "group_size": 80}))
    texts = spans(1, every_length=router == "switch")
    together, reversed_, alone = score(texts), score(texts[::-1])[::-1], [score([text])[0] for text in texts]
    for other in (reversed_, alone):
        for one, same in zip(together, other, strict=True):
            np.testing.assert_allclose(one.log_probabilities, same.log_probabilities, rtol=2e-4, atol=2e-5)
            np.testing.assert_array_equal(one.greedy, same.greedy)


def test_with_its_capacity_the_score_would_depend_on_neighbours():
    """That the check above can fail: the model as trained drops tokens, and others when others are there."""
    config = small.config({"router": "switch", "capacity_factor": 0.5, "group_size": 24})
    params = sharp(config)
    first, second = (small.batch(2, 12, seed) for seed in (0, 1))
    mixed = tuple(x.at[1].set(y[1]) for x, y in zip(first, second, strict=True))
    one, other = (np.asarray(small.logits(config, params, tokens))[0] for tokens in (first, mixed))
    assert np.abs(one - other).max() < 1e-5, "earlier tokens are seated first"
    swapped = tuple(x.at[0].set(y[0]) for x, y in zip(first, second, strict=True))
    one, other = (np.asarray(small.logits(config, params, tokens))[1] for tokens in (first, swapped))
    assert np.abs(one - other).max() > 1e-2


def test_a_greedy_continuation_is_greedy():
    """The model's own choices, found one by one; of one that is changed, the ones before it still are."""
    score, logits_of = scorer(small.config()), logits_alone(small.config())
    ids = [1, 2, 3]
    for _ in range(5):
        ids.append(int(logits_of(ids)[-1].argmax()))
    prefix, own = np.array(ids[:3], np.int32), np.array(ids[3:], np.int32)
    other = own.copy()
    other[2] = (other[2] + 1) % small.VOCAB
    said, unsaid = score([Span(prefix, own), Span(prefix, other)])
    assert said.greedy.all()
    assert unsaid.greedy.tolist()[:3] == [True, True, False]


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 100), (100, 100)]
)
def test_lengths_are_powers_of_two_up_to_the_longest(tokens, length):
    assert padded_length(tokens, 100) == length
    assert padded_length(5, 10) == 10


def test_few_programs_are_compiled(monkeypatch):
    """One for each padded length, whatever the number of sequences."""
    shapes = []

    def traced(config, params, router_state, tokens, *rest):
        shapes.append(tokens.shape)
        return _score_tokens(config, params, router_state, tokens, *rest)

    monkeypatch.setattr("moe_jax.evaluation.scoring._score_tokens", traced)
    score = scorer(small.config())
    for count in (1, 3, 6):
        score(spans()[:count] * count)
    assert shapes == [(4, 16), (4, 32), (4, MAX_TOKENS)]


def test_a_span_that_is_too_long_is_an_error():
    score = scorer(small.config())
    with pytest.raises(ConfigError, match="tokens of a span is 41; accepted: at most 40"):
        score([Span(np.zeros(21, np.int32), np.zeros(21, np.int32))])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (small.config(causal=False), "model.causal is False; accepted: True"),
        (
            small.config({"router": "base", "capacity_factor": None, "allow_noncausal_router": True}),
            "model.moe.router is 'base', with which a token's experts depend on later tokens",
        ),
        (
            small.config({"router": "expert_choice", "k": 2, "allow_noncausal_router": True}),
            "model.moe.router is 'expert_choice', whose decisions depend on its capacity",
        ),
        (
            small.config({"router": {"kind": "expert_choice", "among": "seen"}, "k": 2}),
            "accepted: a router whose capacity only drops",
        ),
        (
            small.config(
                {
                    "router": {"kind": "hierarchical", "inner": {"kind": "expert_choice", "among": "seen"}},
                    "k": 2,
                    "capacity_factor": None,
                }
            ),
            "model.moe.router is 'hierarchical', whose decisions depend on its capacity",
        ),
        (
            small.config(
                {"router": "soft_moe", "k": 1, "capacity_factor": None, "group_size": 8, "allow_noncausal_router": True}
            ),
            "model.moe.router is 'soft_moe', whose decisions",
        ),
    ],
)
def test_models_without_a_score_of_their_own_are_refused(config, says):
    with pytest.raises(ConfigError) as caught:
        scoring_config(config)
    assert says in str(caught.value)
