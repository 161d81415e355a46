"""Order and ranks of small keys, by native code and without it, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.native import sorting
from moe_jax.native.sorting import NOWHERE, counting_sort, rank_within_key

KEYS = 4
DRAWN = st.lists(st.integers(NOWHERE, KEYS - 1), min_size=1, max_size=12)


def assert_sorted(key, result):
    place, element, sizes = map(np.asarray, result)
    order = [i for k in range(KEYS) for i, one in enumerate(key) if one == k]
    assert element.tolist() == order + [NOWHERE] * (len(key) - len(order))
    assert place.tolist() == [order.index(i) if one != NOWHERE else NOWHERE for i, one in enumerate(key)]
    assert sizes.tolist() == [list(key).count(k) for k in range(KEYS)]


@pytest.mark.parametrize("native", [True, False], ids=["counted", "sorted"])
@given(key=DRAWN)
def test_sort_by_key(native, key):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "has_native_sort", lambda platform: native)
        assert_sorted(key, counting_sort(jnp.asarray(key, jnp.int32), KEYS))


def test_each_of_many_at_once():
    keys = np.random.default_rng(0).integers(NOWHERE, KEYS, (3, 20)).astype(np.int32)
    results = jax.vmap(lambda key: counting_sort(key, KEYS))(keys)
    for i, key in enumerate(keys):
        assert_sorted(key, [x[i] for x in results])


@pytest.mark.parametrize("native", [True, False], ids=["counted", "summed"])
@given(pairs=st.lists(st.tuples(st.integers(0, KEYS - 1), st.booleans()), min_size=1, max_size=12))
def test_count_earlier(native, pairs):
    """In each of two groups, of which the second has the elements in reverse."""
    both = [pairs, pairs[::-1]]
    key, counted = (np.asarray([[pair[i] for pair in group] for group in both]) for i in range(2))
    expected = [[sum(c for k, c in group[:i] if k == one) for i, (one, _) in enumerate(group)] for group in both]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "has_native_sort", lambda platform: native)
        assert rank_within_key(jnp.asarray(key, jnp.int32), jnp.asarray(counted), KEYS).tolist() == expected


def test_a_key_beyond_the_last_is_an_error():
    # JAX raises one while it starts the program, the other while it waits for the end.
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="a key is larger than num_keys - 1"):
        jax.block_until_ready(counting_sort(jnp.asarray([0, KEYS], jnp.int32), KEYS))
