"""Each router's decision against transcriptions of its paper, and what holds of every router."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.routing.assignment import assign_choices
from moe_jax.routing.capacity import seats_by_position
from moe_jax.routing.expert_choice import expert_choice
from moe_jax.routing.gshard import gshard
from moe_jax.routing.switch import switch
from moe_jax.routing.uniform_random import uniform_random
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.decisions import DECISIONS, decide

G, S, E = 3, 10, 4


@st.composite
def problems(draw, skews=(0.0, 2.0, 20.0)):
    """Logits [G, S, E], some skewed, and which tokens are valid."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    logits = rng.normal(size=(G, S, E)) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits[..., 0] += draw(st.sampled_from(skews))
    valid = rng.uniform(size=(G, S)) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(valid)


CAPACITIES = st.sampled_from([1, 3, S])


@given(problems(), CAPACITIES)
def test_switch_equals_its_pseudo_code(problem, capacity):
    expected = references.switch(*map(np.asarray, problem), capacity)
    assert_close(switch(*problem, capacity).combine_weights(), expected, 1e-6)


@pytest.mark.parametrize(
    ("policy", "threshold"),
    [("all", 0.2), ("none", 0.2), *((policy, t) for policy in ("threshold", "random") for t in (0.0, 0.2, 0.5))],
)
@given(problems(), CAPACITIES, st.integers(0, 99))
def test_gshard_equals_its_pseudo_code(policy, threshold, problem, capacity, seed):
    rng = jax.random.key(seed)
    draws = np.asarray(jax.random.uniform(rng, (G, S)))
    expected = references.top_2(*map(np.asarray, problem), capacity, policy, threshold, draws)
    assignment = gshard(*problem, capacity, policy, threshold, rng)
    assert_close(assignment.combine_weights(), expected, 1e-6)


# A skew of 20 would round the probabilities of an expert's candidates to ties in float32.
@given(problems(skews=(0.0, 2.0)), CAPACITIES)
def test_expert_choice_equals_its_pseudo_code(problem, capacity):
    expected = references.expert_choice(*map(np.asarray, problem), capacity)
    assert_close(expert_choice(*problem, capacity).combine_weights(), expected, 1e-6)


def test_gshard_without_a_key_for_its_draws_is_refused():
    with pytest.raises(ConfigError, match="rng is None; accepted: a key"):
        gshard(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), 2, "random")


def test_uniform_random_draws_every_set_of_different_experts_equally_often():
    assignment = uniform_random(jnp.ones((4, 1500), bool), 1500, 4, 2, jax.random.key(0))
    first, second = np.asarray(assignment.expert).reshape(4, 2, 1500).transpose(1, 0, 2).reshape(2, -1)
    pairs = np.bincount(np.minimum(first, second) * 4 + np.maximum(first, second), minlength=16).reshape(4, 4)
    assert (first != second).all()
    # Six pairs, 1000 of each expected, five standard deviations allowed.
    assert (np.abs(pairs[np.triu_indices(4, 1)] - 1000) < 5 * np.sqrt(1000 * 5 / 6)).all()
    assert pairs.sum() == 6000
    assert (assignment.weight == 0.5).all()


@pytest.mark.parametrize("router", DECISIONS)
@given(problems(), st.sampled_from([None, 0.5, 1.0, 1.25]), st.integers(1, E))
def test_weights_and_seats(router, problem, capacity_factor, k):
    """Weights are finite and not negative, no expert runs more tokens than it has seats, none runs an invalid one."""
    logits, valid = problem
    assignment = decide(router, logits, valid, capacity_factor, k)
    weights = np.asarray(assignment.combine_weights())
    assert np.isfinite(weights).all()
    assert weights.min() >= 0
    mask = np.asarray(assignment.dispatch_mask())
    assert mask.sum(axis=1).max() <= assignment.capacity
    assert not mask[~np.asarray(valid)].any()
    # No token twice at one expert, and no seat for two.
    assert mask.sum() == assignment.kept.sum()
    for g in range(G):
        kept = np.asarray(assignment.kept[g])
        places = list(zip(np.asarray(assignment.expert[g])[kept], np.asarray(assignment.seat[g])[kept], strict=True))
        assert len(set(places)) == len(places)
    if capacity_factor is None and router != "expert_choice":
        np.testing.assert_array_equal(assignment.kept, assignment.requested)


@pytest.mark.parametrize("router", ["switch", "gshard_all", "gshard_none"])
def test_capacity_binds(router):
    """With every token on one expert, exactly that expert's seats are filled by first choices, in every group."""
    logits = jnp.zeros((G, S, E)).at[..., 2].set(9.0).at[..., 1].set(5.0)
    assignment = decide(router, logits, jnp.ones((G, S), bool), 1.0)
    mask = np.asarray(assignment.dispatch_mask())
    assert assignment.capacity == {"switch": 3}.get(router, 5)
    assert (mask[:, :, 2].sum(axis=1) == assignment.capacity).all()
    assert (mask[:, : assignment.capacity, 2]).all()


def test_a_second_choice_never_takes_the_seat_of_a_first_choice():
    """The last token's first choice is seated before the first token's second choice."""
    logits = jnp.asarray([[[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]])
    mask = gshard(logits, jnp.ones((1, 3), bool), 1).dispatch_mask()
    np.testing.assert_array_equal(mask[0], [[True, False, False], [False, False, True], [False, True, False]])


@given(st.lists(st.tuples(st.integers(0, E - 1), st.booleans()), min_size=12, max_size=12))
def test_seats_by_position_equals_a_count(asks):
    expert, requested = (np.asarray(column).reshape(2, 6) for column in zip(*asks, strict=True))
    seats = np.asarray(seats_by_position(jnp.asarray(expert), jnp.asarray(requested), E))
    for g, a in np.ndindex(2, 6):
        assert seats[g, a] == sum(requested[g, b] and expert[g, b] == expert[g, a] for b in range(a))


def test_assignments_are_choice_major():
    expert = jnp.asarray([[[0, 1], [1, 2], [0, 2]]], jnp.int32)
    weight = jnp.asarray([[[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]]])
    requested = jnp.asarray([[[True, True], [True, False], [True, True]]])
    assignment = assign_choices(expert, weight, requested, 3, 1)
    np.testing.assert_array_equal(assignment.token[0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(assignment.expert[0], [0, 1, 0, 1, 2, 2])
    np.testing.assert_array_equal(assignment.kept[0], [True, True, False, False, False, True])
    assert_close(assignment.combine_weights()[0], [[0.6, 0, 0], [0, 0.7, 0], [0, 0, 0.1]])


@pytest.mark.parametrize("router", sorted(set(DECISIONS) - {"gshard_random", "uniform_random"}))
def test_a_padded_batch_decides_as_the_unpadded_one(router):
    """With the same seats. The draws of the two random routers depend on the shape of the batch."""
    logits = jax.random.normal(jax.random.key(0), (G, S, E))
    padded = jnp.concatenate([logits, 99.0 * jnp.ones((G, 5, E))], axis=1)
    _, decision = DECISIONS[router]
    expected = decision(logits, jnp.ones((G, S), bool), 3, 2).combine_weights()
    actual = decision(padded, jnp.broadcast_to(jnp.arange(S + 5) < S, (G, S + 5)), 3, 2).combine_weights()
    np.testing.assert_array_equal(actual[:, :S], expected)
    assert not actual[:, S:].any()


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


def test_the_asking_of_two_experts_is_causal_but_a_second_choice_seat_is_not():
    """A later token's first choice may take the seat of an earlier one's second choice; without capacity it cannot."""
    before = jnp.asarray([[[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]])
    after = before.at[0, 2].set(jnp.asarray([0.0, 2.0, 1.0]))
    valid = jnp.ones((1, 3), bool)
    assert gshard(before, valid, 1).kept[0, 3]
    assert not gshard(after, valid, 1).kept[0, 3]
    free = [gshard(logits, valid, 3).combine_weights()[:, :2] for logits in (before, after)]
    np.testing.assert_array_equal(*free)


@pytest.mark.parametrize("router", ["switch", "gshard_all", "expert_choice"])
def test_the_weight_carries_a_gradient_to_the_router(router):
    logits = jax.random.normal(jax.random.key(0), (1, S, E))
    valid = jnp.ones((1, S), bool)
    gradient = jax.grad(lambda logits: (decide(router, logits, valid, None).combine_weights() ** 2).sum())(logits)
    assert (np.abs(np.asarray(gradient)).max(axis=-1) > 1e-3).all()
