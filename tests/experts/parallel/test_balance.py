"""A placement is a permutation, never worse than the one before, and near the best there is, found by trying all."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.experts.parallel.balance import balanced_placement, device_load


@st.composite
def problems(draw):
    devices, room = draw(st.sampled_from([(1, 4), (2, 2), (3, 2), (2, 3), (4, 1)]))
    count = devices * room
    load = np.array(draw(st.lists(st.integers(0, 20), min_size=count, max_size=count)), np.float64)
    return load, devices, np.array(draw(st.permutations(range(count))))


@given(problems())
def test_a_placement_is_near_the_best_and_never_worse_than_the_last(problem):
    load, devices, now = problem
    before = now.copy()
    placement = balanced_placement(load, devices, now)
    np.testing.assert_array_equal(now, before)
    # A permutation has as many experts on each device.
    np.testing.assert_array_equal(np.sort(placement), np.arange(len(load)))
    fullest = device_load(load, devices, placement).max()
    assert fullest <= device_load(load, devices, now).max()
    best = min(device_load(load, devices, np.array(p)).max() for p in itertools.permutations(range(len(load))))
    assert fullest <= 4 / 3 * best + 1e-9
    # An expert on its old device is in its old place, and what is as good as before is as before.
    room = len(load) // devices
    stays = placement // room == now // room
    np.testing.assert_array_equal(placement[stays], now[stays])
    np.testing.assert_array_equal(balanced_placement(load, devices, placement), placement)


def test_hot_experts_part_and_others_stay():
    placement = balanced_placement(np.array([5.0, 4.0, 1.0, 1.0]), 2, np.arange(4))
    assert placement[0] // 2 != placement[1] // 2
    assert (placement == np.arange(4)).sum() == 2


def test_experts_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(ConfigError, match=r"mesh\.expert is 3; accepted: a divisor"):
        balanced_placement(np.ones(4), 3, np.arange(4))
