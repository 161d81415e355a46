"""The workloads that layers are measured with are what they are said to be."""

import numpy as np
import pytest

from experiments.benchmarks.shapes import BURST_TOKENS, SHAPES, WORKLOADS
from moe_jax.experts.ffn import FFN_KINDS


def draw(workload, tokens, num_experts, k, seed=0):
    expert = WORKLOADS[workload](np.random.default_rng(seed), tokens, num_experts, k)
    return expert, np.bincount(expert.ravel(), minlength=num_experts)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize(("tokens", "num_experts", "k"), [(64, 8, 2), (50, 7, 3), (9, 4, 4), (30, 16, 1), (1, 1, 1)])
def test_experts_of_a_token_are_distinct_and_the_same_seed_draws_the_same(workload, tokens, num_experts, k):
    expert, load = draw(workload, tokens, num_experts, k)
    assert expert.shape == (tokens, k)
    assert expert.dtype == np.int32
    assert load.shape == (num_experts,)
    assert all(len(set(row)) == k for row in expert.tolist())
    np.testing.assert_array_equal(draw(workload, tokens, num_experts, k)[0], expert)
    if 1 < k < num_experts:
        assert (draw(workload, tokens, num_experts, k, seed=1)[0] != expert).any()


@pytest.mark.parametrize(("tokens", "num_experts", "k"), [(64, 8, 2), (60, 7, 7), (32, 64, 8), (21, 6, 4)])
def test_a_balanced_load_is_even_to_the_last_choice(tokens, num_experts, k):
    expert, load = draw("balanced", tokens, num_experts, k)
    assert set(load) == {tokens * k // num_experts}
    # And no mere enumeration: of the tokens of a block each has its own experts, in an order of its own.
    if k < num_experts:
        assert len({tuple(row) for row in expert.tolist()}) > tokens / 3


def test_a_balanced_load_that_cannot_be_even_differs_by_one():
    _, load = draw("balanced", 50, 7, 3)
    assert set(load) == {21, 22}


def test_a_uniform_load_is_even_but_for_chance():
    _, load = draw("uniform", 8192, 8, 2)
    assert abs(load / 2048 - 1).max() < 0.1


def test_one_hot_expert_is_everyones_first_choice_and_the_others_are_even():
    expert, load = draw("hot", 4096, 8, 3)
    assert len(set(expert[:, 0])) == 1
    others = np.delete(load, expert[0, 0])
    assert abs(others / (4096 * 2 / 7) - 1).max() < 0.1


def test_zipf_popularity_falls_with_the_rank():
    _, load = draw("zipf", 20000, 16, 1)
    popularity = 1 / np.arange(1, 17)
    np.testing.assert_allclose(np.sort(load)[::-1] / 20000, popularity / popularity.sum(), atol=0.01)
    # Where several are drawn, the first is drawn in the same way, and no expert twice.
    first = np.bincount(draw("zipf", 20000, 16, 4)[0][:, 0], minlength=16)
    np.testing.assert_allclose(np.sort(first)[::-1] / 20000, popularity / popularity.sum(), atol=0.01)
    assert (np.diff(load) > 0).any()


def test_bursts_are_runs_of_tokens_with_the_same_experts():
    expert, _ = draw("bursts", 20000, 64, 4)
    starts = (expert[1:] != expert[:-1]).any(axis=1).sum()
    assert abs(starts * BURST_TOKENS / 20000 - 1) < 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_can_be_run(name):
    shape = SHAPES[name]
    assert shape.k <= shape.num_experts
    assert shape.kind in FFN_KINDS
    assert shape.tokens * shape.k % shape.num_experts == 0
