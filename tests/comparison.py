"""Comparisons that gate on the largest error, relative to the largest entry that is expected."""

from typing import Any

import chex
import jax
import numpy as np


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5, what: str = "") -> None:
    """The largest error is within `tolerance` of the largest expected entry; an expected zero tensor is met exactly."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(expected).all(), f"{what}: the expected values are not finite"
    if not actual.size:
        return
    error, scale = np.abs(actual - expected).max(), np.abs(expected).max()
    assert error <= tolerance * scale, f"{what}: error {error:.3g}, largest entry {scale:.3g}"


def assert_each_close(actual: Any, expected: Any, tolerance: float = 1e-5, what: str = "") -> None:
    """`assert_close` for each entry of the first axis (each expert) on its own scale."""
    # Each slice of a jax array would be a program of its own.
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert len(actual) == len(expected)
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_close(one, other, tolerance, f"{what}[{i}]")


def assert_trees_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """`assert_close` for every leaf; leaves of experts (named `experts_...`) each expert on its own scale."""
    actual, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (actual, expected))
    assert [path for path, _ in actual] == [path for path, _ in expected]
    for (path, one), (_, other) in zip(actual, expected, strict=True):
        name = jax.tree_util.keystr(path)
        compare = assert_each_close if "experts_" in name else assert_close
        compare(one, other, tolerance, name)


def assert_trees_equal(actual: Any, expected: Any) -> None:
    """Structures, types and all values are the same, of random keys their data."""

    def plain(leaf: Any) -> Any:
        is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    chex.assert_trees_all_equal(jax.tree.map(plain, actual), jax.tree.map(plain, expected), strict=True)
