"""Switch routing against transcriptions of its papers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.routing.switch import switch, switch_rerouted
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.problems import CAPACITIES, SEEDS, problem, problems
from tests.routing.routers import E, G, S


@given(problems(), CAPACITIES)
def test_switch_equals_its_pseudo_code(problem, capacity):
    expected = references.switch(*map(np.asarray, problem), capacity)
    assert_close(switch(*problem, capacity).combine_weights(), expected, 1e-6)


@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_switch_max_keeps_the_largest_gates(seed, capacity):
    logits, valid = problem(seed)
    mask = np.asarray(switch(jnp.asarray(logits), jnp.asarray(valid), capacity, "probability").dispatch_mask())
    probabilities = references.softmax(logits.astype(np.float64))
    for g, e in np.ndindex(G, E):
        asking = [s for s in np.flatnonzero(valid[g]) if probabilities[g, s].argmax() == e]
        best = sorted(asking, key=lambda s: -probabilities[g, s, e])[:capacity]
        assert set(np.flatnonzero(mask[g, :, e])) == set(best)


@given(SEEDS, st.integers(1, 3), st.integers(2, E))
def test_no_token_is_left_behind_as_in_loops(seed, capacity, rounds):
    logits, valid = problem(seed)
    assignment = switch_rerouted(jnp.asarray(logits), jnp.asarray(valid), capacity, rounds)
    probabilities = references.softmax(logits.astype(np.float64))
    expected = np.zeros(logits.shape)
    for g in range(G):
        taken, waiting = np.zeros(E, int), list(np.flatnonzero(valid[g]))
        for r in range(rounds):
            for s in list(waiting):
                e = np.argsort(-probabilities[g, s], kind="stable")[r]
                if taken[e] < capacity:
                    taken[e] += 1
                    expected[g, s, e] = probabilities[g, s, e]
                    waiting.remove(s)
    assert_close(assignment.combine_weights(), expected, 1e-6)
    assert int(assignment.requested.sum()) == valid.sum()


def test_sampling_draws_by_probability_and_weighs_by_it():
    logits = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 2.0]), (1, 6000, 3))
    assignment = switch(logits, jnp.ones((1, 6000), bool), 6000, rng=jax.random.key(0))
    probabilities = references.softmax(np.asarray([0.0, 1.0, 2.0]))
    share = np.bincount(np.asarray(assignment.expert[0]), minlength=3) / 6000
    assert (np.abs(share - probabilities) < 5 * np.sqrt(probabilities * (1 - probabilities) / 6000)).all()
    assert_close(assignment.weight, probabilities[np.asarray(assignment.expert)], 1e-6)


@given(problems(), st.integers(0, S - 1), st.integers(0, 99), CAPACITIES)
def test_later_tokens_never_change_a_switch_decision(problem, last, seed, capacity):
    """Decision, weight and seat of every token up to `last` hold whatever follows it in the group."""
    logits, valid = problem
    other = jax.random.normal(jax.random.key(seed), logits.shape) * 3.0
    future = jnp.arange(S)[None] > last
    changed = jnp.where(future[..., None], other, logits)
    before = switch(logits, valid, capacity).combine_weights()
    after = switch(changed, valid ^ future, capacity).combine_weights()
    np.testing.assert_array_equal(before[:, : last + 1], after[:, : last + 1])
