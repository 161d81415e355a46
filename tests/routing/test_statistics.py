"""Numbers of a batch from the sums of its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing.statistics import METRICS, Statistic, mean_where, values
from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.routers import ASSIGNING, build, variables

# Of several parts the mean of theirs: a quantile does not add up.
DOES_NOT_ADD_UP = {"quantile_bias"}


# Those that draw in evaluation too draw other numbers for other parts.
@pytest.mark.parametrize("name", sorted(set(ASSIGNING) - {"uniform_random", "gshard", "st_moe"}))
def test_the_parts_of_a_batch_add_up_to_it(name):
    """Each loss and metric of four groups, from those of one and of three, as in evaluation, where nothing is drawn."""
    router = build(name)
    whole, state = routers.tokens(groups=4, share_valid=0.6), variables(build(name))

    def sown(tokens):
        rngs = {"routing": jax.random.key(0)}
        _, found = router.apply(state, tokens, rngs=rngs, mutable=[METRICS])
        return found[METRICS]

    batch = values(sown(whole))
    first, rest = (sown(jax.tree.map(lambda x, part=part: x[part], whole)) for part in (slice(1), slice(1, 4)))
    together = values(jax.tree.map(jnp.add, first, rest))
    assert together.keys() == batch.keys()
    for metric in together.keys() - DOES_NOT_ADD_UP:
        assert_close(together[metric], batch[metric], 1e-5, metric)


def test_a_mean_of_unequal_parts_is_weighted():
    x, mask = jnp.asarray([1.0, 2.0, 3.0, 9.0]), jnp.asarray([True, True, True, False])
    one, other = mean_where(x[:1], mask[:1]), mean_where(x[1:], mask[1:])
    assert values(jax.tree.map(jnp.add, one, other)) == mean_where(x, mask).value == 2.0
    assert mean_where(x, jnp.zeros(4, bool)).value == 0.0


def test_statistics_of_stacked_layers_have_their_values():
    layers = [Statistic((jnp.asarray([1.0, 3.0]),), spread), Statistic((jnp.asarray([5.0, 5.0]),), spread)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
    np.testing.assert_array_equal(values({"load": stacked}, stacked=True)["load"], [2.0, 0.0])


def spread(x):
    return x.max() - x.min()
