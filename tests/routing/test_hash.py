"""Hash layers against the definition of their hash, and by counts."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.routing.hash import balanced_table, mixed
from tests.routing import routers
from tests.routing.routers import E, apply, make


def test_the_hash_is_murmur_s_finalizer():
    def finalize(h):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
        return (h ^ (h >> 16)) >> 1

    ids = list(range(300))
    for seed in (0, 5):
        expected = [finalize((i + seed * 0x9E3779B9) & 0xFFFFFFFF) for i in ids]
        np.testing.assert_array_equal(mixed(jnp.asarray(ids, jnp.int32), seed), expected)
    share = np.bincount(np.asarray(mixed(jnp.arange(8000, dtype=jnp.int32), 0)) % 8) / 8000
    assert (np.abs(share - 1 / 8) < 5 * np.sqrt(7 / 64 / 8000)).all()


def test_a_balanced_table_spreads_frequencies():
    counts = [1000, 500, 400, 100, 60, 40, 30, 10]
    table = balanced_table(counts, 2)
    assert table[0] != table[1]
    assert table[1] == table[2]
    load = np.bincount(table, weights=counts)
    assert abs(load[0] - load[1]) <= 10 + 60


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("token", r"^router 'hash' with by='token' needs token ids, but the layer was called without `ids`"),
        (
            "position",
            r"^router 'hash' with by='position' needs positions, but the layer was called without `pos",
        ),
    ],
)
def test_a_layer_that_is_not_told_what_is_hashed_says_so(by, says):
    tokens = routers.tokens().replace(ids=None, positions=None)
    with pytest.raises(ConfigError, match=says):
        apply(make("hash", E, 1, by=by), tokens)


@pytest.mark.parametrize("by", ["token", "balanced", "position"])
def test_a_hash_routes_by_what_it_says(by):
    tokens = routers.tokens(0, share_valid=1.1)
    router = make("hash", E, 1, by=by, counts=tuple(range(50)) if by == "balanced" else ())
    expert = np.asarray(apply(router, tokens)[0].expert)
    key = np.asarray(tokens.positions if by == "position" else tokens.ids)
    for value in np.unique(key):
        assert len(set(expert[key == value].tolist())) == 1
    assert len(set(expert.reshape(-1).tolist())) == E
