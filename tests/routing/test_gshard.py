"""GShard's routing against a transcription of its algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.routing.gshard import gshard
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.problems import CAPACITIES, problems
from tests.routing.routers import G, S


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


def test_gshard_without_a_key_for_its_draws_is_refused():
    with pytest.raises(ConfigError, match="rng is None; accepted: a key"):
        gshard(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), 2, "random")


def test_a_second_choice_never_takes_the_seat_of_a_first_choice():
    """The last token's first choice is seated before the first token's second choice."""
    logits = jnp.asarray([[[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]])
    mask = gshard(logits, jnp.ones((1, 3), bool), 1).dispatch_mask()
    np.testing.assert_array_equal(mask[0], [[True, False, False], [False, False, True], [False, True, False]])


def test_the_asking_of_two_experts_is_causal_but_a_second_choice_seat_is_not():
    """A later token's first choice may take the seat of an earlier one's second choice; without capacity it cannot."""
    before = jnp.asarray([[[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]])
    after = before.at[0, 2].set(jnp.asarray([0.0, 2.0, 1.0]))
    valid = jnp.ones((1, 3), bool)
    assert gshard(before, valid, 1).kept[0, 3]
    assert not gshard(after, valid, 1).kept[0, 3]
    free = [gshard(logits, valid, 3).combine_weights()[:, :2] for logits in (before, after)]
    np.testing.assert_array_equal(*free)
