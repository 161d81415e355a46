"""DeepSeek's routing: groups of experts as in loops, and a bias that chooses and does not weigh."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.routing.deepseek import group_limited_choices
from moe_jax.routing.losses import updated_bias
from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.problems import SEEDS
from tests.routing.routers import D, E, S, apply, make, state_after


@pytest.mark.parametrize(("group_score", "counted"), [("max", 1), ("top2_sum", 2)])
@given(SEEDS, st.booleans())
def test_group_limited_choices_are_those_of_loops(group_score, counted, seed, biased):
    rng = np.random.default_rng(seed)
    # With a bias, selections may be negative: experts of groups that are out must not come in for that.
    selection = rng.random((1, S, 12)) - (2.0 if biased else 0.0)
    chosen = np.asarray(group_limited_choices(jnp.asarray(selection, jnp.float32), 4, 4, 2, group_score))
    for s in range(S):
        groups = selection[0, s].reshape(4, 3)
        value = np.sort(groups, axis=1)[:, -counted:].sum(axis=1)
        allowed = np.argsort(-value)[:2]
        candidates = [e for e in range(12) if e // 3 in allowed]
        expected = sorted(candidates, key=lambda e: -selection[0, s, e])[:4]
        assert chosen[0, s].tolist() == expected


def test_a_selection_bias_moves_against_the_load_and_keeps_its_mean():
    bias = updated_bias(jnp.asarray([0.1, 0.0, -0.1, 0.0]), jnp.asarray([5.0, 1.0, 3.0, 3.0]), 0.01)
    moved = np.asarray([0.1 - 0.01, 0.01, -0.1, 0.0])
    assert_close(bias, moved - moved.mean(), 1e-6)
    assert abs(float(bias.sum())) < 1e-7


def test_the_bias_of_deepseek_chooses_and_does_not_weigh():
    tokens, kernel = routers.tokens(0), jnp.asarray(np.random.default_rng(0).normal(size=(D, E)), jnp.float32)
    router = make("deepseek", E, 2, renormalize=False)
    bias = jnp.asarray([50.0, 0.0, -50.0, 0.0])
    assignment, sown = apply(router, tokens, {"kernel": kernel}, {"bias": bias})
    mask = np.asarray(assignment.dispatch_mask())[np.asarray(tokens.valid)]
    assert mask[:, 0].all()
    assert not mask[:, 2].any()
    scores = 1 / (1 + np.exp(-np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64)))
    weights = np.asarray(assignment.combine_weights())
    assert_close(weights, np.where(weights > 0, scores, 0.0))
    assert_close(state_after(router, {"bias": bias}, sown)["bias"], updated_bias(bias, sown["load"], 0.001), 1e-6)
