"""BASE layers against scipy's linear assignment."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from moe_jax.routing.base_layers import auction
from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.problems import SEEDS
from tests.routing.routers import D, E, G, S, apply, make


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([(6, 1), (8, 4), (12, 3), (12, 5), (200, 8)]), st.booleans())
def test_the_auction_is_the_linear_assignment(seed, shape, alike):
    """Integer scores and a unit below 1 / 2 tokens leave no room between the auction's sum and the largest."""
    tokens, experts = shape
    seats = -(-tokens // experts)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (tokens, experts)).astype(np.float32)
    if alike:
        scores = scores[rng.integers(0, 3, tokens)]
    expert = np.asarray(auction(jnp.asarray(scores), seats, tolerance=0.4 / tokens / 9))
    assert np.bincount(expert, minlength=experts).max() <= seats
    rows, columns = linear_sum_assignment(np.repeat(scores, seats, axis=1), maximize=True)
    assert scores[np.arange(tokens), expert].sum() == scores[rows, columns // seats].sum()


def test_an_auction_that_is_cut_short_seats_everyone_all_the_same():
    """After one round of bids many have no seat: they get the free ones."""
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(21, 4)) + np.asarray([5, 0, 0, 0]), jnp.float32)
    short, whole = auction(scores, 6, most_rounds=1), auction(scores, 6)
    assert np.bincount(short, minlength=4).max() <= 6
    worth = [float(scores[np.arange(21), expert].sum()) for expert in (short, whole)]
    assert worth[0] < worth[1]


def test_base_is_even_in_training_and_greedy_in_evaluation():
    tokens = routers.tokens(0, share_valid=1.1)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(D, E)) + np.asarray([3, 0, 0, 0]), jnp.float32)
    router = make("base", E, 1, training=True)
    trained, _ = apply(router, tokens, {"kernel": kernel})
    scores = np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_array_equal(np.asarray(trained.dispatch_mask()).sum(axis=1), S // E)
    for g in range(G):
        rows, columns = linear_sum_assignment(np.repeat(scores[g], S // E, axis=1), maximize=True)
        reached = scores[g][np.asarray(trained.dispatch_mask()[g])].sum()
        assert reached >= scores[g][rows, columns // (S // E)].sum() - S * 1e-3 * np.ptp(scores)
    weights = np.asarray(trained.combine_weights())
    assert_close(weights, np.where(weights > 0, 1 / (1 + np.exp(-scores)), 0.0))
    greedy, _ = apply(router.clone(training=False), tokens, {"kernel": kernel})
    np.testing.assert_array_equal(greedy.expert, scores.argmax(axis=-1))
    assert greedy.kept.all()
