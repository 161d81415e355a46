"""Segments of published layer lists, against the definition: they give the layers back, in as few scans as expected."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.configuration import build
from moe_jax.layers.attention import GroupedQuery, SlidingWindow
from moe_jax.layers.moe import MoEConfig
from moe_jax.models.config import ModelConfig
from moe_jax.models.layer_spec import Variant
from moe_jax.models.segments import find_segments
from moe_jax.routing.deepseek import DeepSeek
from moe_jax.routing.top_k import TopK

FULL = GroupedQuery(64, 8, 64)
DEEPSEEK = {
    "vocab_size": 129280,
    "model_dim": 7168,
    "ffn": "swiglu",
    "ffn_dim": 18432,
    "attention": {"heads": 128, "head_dim": 128},
    "moe": {
        "num_experts": 256,
        "router": {"kind": "deepseek", "num_groups": 8, "groups_per_token": 4, "scale": 2.5},
        "k": 8,
        "capacity_factor": None,
        "expert_dim": 2048,
        "shared_dim": 2048,
    },
}


def deepseek_v3():
    return build(ModelConfig, DEEPSEEK | {"num_layers": 61, "moe_layers": tuple(range(3, 61))})


def gpt_oss():
    """Every other layer sees a window."""
    return ModelConfig(
        vocab_size=201088,
        num_layers=36,
        model_dim=2880,
        ffn="gpt_oss",
        ffn_dim=2880,
        attention=SlidingWindow(64, 8, 64, window=128),
        variants=(Variant(layers=tuple(range(1, 36, 2)), attention=FULL),),
        moe_layers=tuple(range(36)),
        moe=MoEConfig(num_experts=128, router=TopK(bias=True), k=4, capacity_factor=None),
    )


def gemma_like():
    """Five local layers, then a full one."""
    return ModelConfig(
        vocab_size=256,
        num_layers=48,
        model_dim=64,
        ffn_dim=64,
        attention=SlidingWindow(4),
        variants=(Variant(layers=tuple(range(5, 48, 6)), attention=GroupedQuery(4)),),
    )


def hash_then_learned():
    """Three sparse layers with hash routing, then learned routers with more experts and choices."""
    return build(
        ModelConfig,
        DEEPSEEK
        | {
            "num_layers": 8,
            "moe_layers": tuple(range(8)),
            "variants": [{"layers": (0, 1, 2), "moe": {"num_experts": 16, "router": "hash", "capacity_factor": None}}],
        },
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (deepseek_v3, [(1, 3), (1, 58)]),
        (gpt_oss, [(2, 18)]),
        (gemma_like, [(6, 8)]),
        (hash_then_learned, [(1, 3), (1, 5)]),
    ],
)
def test_published_layer_lists_scan_in_few_segments(make, expected):
    assert [(len(segment.pattern), segment.repeats) for segment in make().segments] == expected


def test_a_variant_changes_its_layers_alone():
    config = gpt_oss()
    assert config.layer(0).attention == SlidingWindow(64, 8, 64, window=128)
    assert config.layer(1).attention == FULL
    mixed = hash_then_learned()
    assert [mixed.layer(i).feed_forward.num_experts for i in (0, 2, 3)] == [16, 16, 256]
    assert isinstance(mixed.layer(3).feed_forward.router, DeepSeek)
    # The width and unit of experts are the variant's own, or else the model's.
    assert (mixed.layer(0).feed_forward.expert_dim, mixed.layer(0).feed_forward.ffn) == (18432, "swiglu")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=14))
def test_segments_are_the_layers_again(layers):
    """Any list: the repeats of the patterns give it back, in order, and no two neighbours are single runs."""
    segments = find_segments(layers)
    assert [layer for segment in segments for layer in segment.pattern * segment.repeats] == layers
    for segment in segments:
        for block, layer in enumerate(segment.pattern):
            assert all(layers[i] == layer for i in segment.layers(block))
    assert not any(a.repeats == b.repeats == 1 for a, b in itertools.pairwise(segments))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(2, 5))
def test_a_repeated_pattern_is_one_segment(pattern, repeats):
    (segment,) = find_segments(pattern * repeats)
    assert len(segment.pattern) <= len(pattern)
    assert len(segment.pattern) * segment.repeats == len(pattern) * repeats
