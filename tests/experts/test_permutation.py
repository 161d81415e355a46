"""Moving rows, against NumPy indexing and the gradient that autodiff finds for plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.experts.permutation import invert, permute_rows, take_rows
from moe_jax.native.sorting import NOWHERE

ROWS_IN, ROWS_OUT = 5, 8


def rows(index):
    """Index, and for each row in, all rows out that copy it, filled up with NOWHERE."""
    index = np.asarray(index)
    inverse = np.full((ROWS_IN, ROWS_OUT), NOWHERE)
    for n in range(ROWS_IN):
        copies = np.flatnonzero(index == n)
        inverse[n, : len(copies)] = copies
    return jnp.asarray(index, jnp.int32), jnp.asarray(inverse, jnp.int32)


INDICES = st.lists(st.integers(NOWHERE, ROWS_IN - 1), min_size=ROWS_OUT, max_size=ROWS_OUT)


@given(INDICES)
def test_permute_rows_and_its_gradient_equal_plain_indexing(index):
    index, inverse = rows(index)
    # Whole numbers, so that sums are exact in any order.
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, size=(ROWS_IN, 3)), jnp.float32)
    cotangent = jnp.asarray(np.random.default_rng(1).integers(-9, 9, size=(ROWS_OUT, 3)), jnp.float32)

    def plain(x):
        # Zeros stand for NOWHERE in a row of their own.
        return jnp.concatenate([x, jnp.zeros((1, 3))])[jnp.where(index == NOWHERE, ROWS_IN, index)]

    y, vjp = jax.vjp(lambda x: permute_rows(x, index, inverse), x)
    expected, expected_vjp = jax.vjp(plain, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(vjp(cotangent)[0], expected_vjp(cotangent)[0])
    np.testing.assert_array_equal(take_rows(x, index), np.where(index[:, None] < 0, 0, np.asarray(x)[index]))


def test_rows_that_go_nowhere_are_masked_even_if_they_are_not_numbers():
    """Nothing of a row that no index names arrives, and no gradient of a NOWHERE row returns."""
    index, inverse = rows([0, NOWHERE, 2, 0, NOWHERE, 3, 3, 3])
    x = jnp.ones((ROWS_IN, 2)).at[jnp.array([1, 4])].set(jnp.nan)
    y, vjp = jax.vjp(lambda x: permute_rows(x, index, inverse), x)
    assert jnp.isfinite(y).all()
    cotangent = jnp.where(index[:, None] == NOWHERE, jnp.nan, jnp.ones_like(y))
    np.testing.assert_array_equal(vjp(cotangent)[0][:, 0], [2, 0, 1, 3, 0])


@given(st.permutations(range(ROWS_OUT)), st.lists(st.booleans(), min_size=ROWS_OUT, max_size=ROWS_OUT))
def test_invert(targets, somewhere):
    index = np.where(somewhere, targets, NOWHERE)
    inverse = np.asarray(invert(jnp.asarray(index, jnp.int32), ROWS_OUT))
    for n in range(ROWS_OUT):
        if n in index:
            assert index[inverse[n]] == n
        else:
            assert inverse[n] == NOWHERE


def test_a_batch_is_moved_as_its_members_are():
    """Values, and gradients of a function that is not linear, with an index of each member or one for all."""
    both = [rows([0, NOWHERE, 2, 0, NOWHERE, 3, 3, 3]), rows([4, 4, 1, NOWHERE, 2, 0, 1, 0])]
    index, inverse = (jnp.stack(parts) for parts in zip(*both, strict=True))
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, size=(2, ROWS_IN, 3)), jnp.float32)

    def gradient(x, index, inverse):
        return jax.grad(lambda x: (permute_rows(x, index, inverse) ** 2).sum())(x)

    for function in (permute_rows, gradient):
        expected = [function(*member) for member in zip(x, index, inverse, strict=True)]
        np.testing.assert_array_equal(jax.vmap(function)(x, index, inverse), expected)
        expected = [function(member, *both[0]) for member in x]
        np.testing.assert_array_equal(jax.vmap(function, (0, None, None))(x, *both[0]), expected)
