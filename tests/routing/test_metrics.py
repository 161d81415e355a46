"""Metrics against counts in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.routing.metrics import probability_metrics
from moe_jax.routing.statistics import values
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.routers import DECISIONS, decide

G, S, E = 2, 8, 4


@pytest.mark.parametrize("router", DECISIONS)
@given(st.integers(0, 99), st.sampled_from([0.0, 3.0, 30.0]), st.sampled_from([0.0, 0.6, 1.0]))
def test_metrics_equal_counts(router, seed, skew, share_valid):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(G, S, E)) + skew * (np.arange(E) == 1), jnp.float32)
    valid = jnp.asarray(rng.uniform(size=(G, S)) < share_valid)
    assignment = decide(router, logits, valid, 1.0)
    expected = references.counts(assignment, np.asarray(valid))
    actual = values(assignment.metrics(valid, 2))
    assert actual.pop("capacity_factor") == assignment.capacity * E / (S * 2)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_nothing_dropped_is_a_fraction_of_0():
    """A second choice that was never asked for is not a dropped one."""
    logits = jax.random.normal(jax.random.key(0), (G, S, E))
    valid = jnp.ones((G, S), bool)
    metrics = values(decide("gshard_none", logits, valid, None).metrics(valid, 2))
    assert metrics["fraction_dropped"] == 0
    assert metrics["tokens_unrouted"] == 0


def test_collapse():
    valid = jnp.ones((G, S), bool)
    logits = jnp.zeros((G, S, E)).at[..., 2].set(50.0)
    metrics = values(decide("switch", logits, valid, 1.0).metrics(valid, 1))
    assert metrics["load_max_over_mean"] == E
    assert metrics["dead_experts"] == 0.75
    assert metrics["fraction_dropped"] == metrics["tokens_unrouted"] == 0.75
    assert metrics["seats_filled"] == 0.25


def test_expert_choice_has_no_imbalance():
    valid = jnp.ones((G, S), bool)
    logits = jax.random.normal(jax.random.key(0), (G, S, E)).at[..., 2].add(50.0)
    metrics = values(decide("expert_choice", logits, valid, 1.0).metrics(valid, 1))
    assert metrics["load_cv"] == metrics["fraction_dropped"] == metrics["dead_experts"] == 0
    assert metrics["seats_filled"] == metrics["load_max_over_mean"] == 1


def test_metrics_of_a_padded_batch_equal_those_of_the_unpadded_one():
    logits = jax.random.normal(jax.random.key(0), (G, S, E))
    padded = jnp.concatenate([logits, 9.0 * jnp.ones((G, 3, E))], axis=1)
    valid = jnp.broadcast_to(jnp.arange(S + 3) < S, (G, S + 3))
    decision = DECISIONS["gshard_all"][1]
    actual = decision(padded, valid, 3, 2).metrics(valid, 2)
    expected = decision(logits, valid[:, :S], 3, 2).metrics(valid[:, :S], 2)
    actual |= probability_metrics(jax.nn.softmax(padded), valid)
    expected |= probability_metrics(jax.nn.softmax(logits), valid[:, :S])
    del expected["capacity_factor"]  # There are as many seats for more places.
    for name, statistic in expected.items():
        assert_close(actual[name].value, statistic.value, 1e-6, name)


def test_probability_metrics():
    certain, indifferent = jax.nn.one_hot(jnp.zeros((1, 1), jnp.int32), E), jnp.full((1, 1, E), 1 / E)
    valid = jnp.asarray([[True, True, False]])
    metrics = values(probability_metrics(jnp.concatenate([certain, indifferent, certain], axis=1), valid))
    assert_close(metrics["entropy"], np.log(E) / 2, 1e-6)
    assert_close(metrics["confidence"], (1 + 1 / E) / 2, 1e-6)
