import dataclasses
import functools
import math

import jax
import pytest

from moe_jax.accounting.parameters import count_parameters
from moe_jax.layers.attention import GroupedQuery
from moe_jax.layers.moe import MoEConfig
from moe_jax.layers.positions import T5Bias
from moe_jax.models.config import ModelConfig
from moe_jax.models.parameters import init_params

DENSE = ModelConfig(vocab_size=300, num_layers=4, model_dim=64, ffn_dim=96, attention=GroupedQuery(4))
SPARSE = dataclasses.replace(DENSE, moe_layers=(1, 3), moe=MoEConfig(num_experts=8))

# Llama 2 7B, Mistral 7B and Mixtral 8x7B are decoders of this kind. The numbers are those of their checkpoints on the
# Hugging Face Hub; 46.7 and 12.9 billion are in the Mixtral paper (arXiv:2401.04088).
LLAMA_2_7B = ModelConfig(
    vocab_size=32000, num_layers=32, model_dim=4096, ffn_dim=11008, ffn="swiglu", attention=GroupedQuery(32)
)
MISTRAL_7B = dataclasses.replace(LLAMA_2_7B, ffn_dim=14336, attention=GroupedQuery(32, 8))
MIXTRAL = dataclasses.replace(
    MISTRAL_7B,
    moe_layers=tuple(range(32)),
    moe=MoEConfig(num_experts=8, router="gshard", k=2, capacity_factor=None, execution="dropless"),
)

# T5 1.0 (Raffel et al. 2020) and 1.1, and Switch Transformers (Fedus et al. 2021, table 9; of the largest with a gated
# unit the released configuration's 128 experts, by which alone it has the 395 billion that the paper says).
T5 = GroupedQuery(12, positions=T5Bias())
t5_attention = functools.partial(dataclasses.replace, T5)
T5_BASE = ModelConfig(
    vocab_size=32128,
    num_layers=12,
    model_dim=768,
    ffn_dim=3072,
    attention=T5,
    architecture="encoder_decoder",
    tie_embeddings=True,
)
T5_LARGE = dataclasses.replace(T5_BASE, num_layers=24, model_dim=1024, ffn_dim=4096, attention=t5_attention(heads=16))
T5_11B = dataclasses.replace(T5_LARGE, ffn_dim=65536, attention=t5_attention(heads=128, head_dim=128))
T5_XXL = dataclasses.replace(
    T5_LARGE, model_dim=4096, ffn_dim=10240, ffn="geglu", tie_embeddings=False, attention=t5_attention(heads=64)
)


def switch(base: ModelConfig, num_experts: int, every: int = 2) -> ModelConfig:
    layers = tuple(range(every - 1, base.num_layers, every))
    return dataclasses.replace(base, moe_layers=layers, moe=MoEConfig(num_experts=num_experts))


SWITCH_C = switch(
    dataclasses.replace(
        T5_LARGE,
        num_layers=15,
        model_dim=2080,
        ffn_dim=6144,
        tie_embeddings=False,
        attention=t5_attention(heads=32, head_dim=64),
    ),
    2048,
    every=1,
)


GROUPED = GroupedQuery(4, 2, 24)


def with_moe(**fields) -> ModelConfig:
    return dataclasses.replace(SPARSE, moe=dataclasses.replace(SPARSE.moe, **fields))


@pytest.mark.parametrize(
    "config",
    [
        DENSE,
        dataclasses.replace(DENSE, moe=MoEConfig(num_experts=8)),
        dataclasses.replace(DENSE, ffn="swiglu", attention=GroupedQuery(4, 2, 24), tie_embeddings=True),
        dataclasses.replace(DENSE, attention=GroupedQuery(4, positions=T5Bias())),
        SPARSE,
        dataclasses.replace(SPARSE, ffn="geglu", scan_layers=True),
        with_moe(expert_dim=32, router="gshard", k=2),
        with_moe(router="uniform_random"),
        dataclasses.replace(SPARSE, moe_layers=(0, 1, 2, 3)),
        dataclasses.replace(SPARSE, architecture="encoder_decoder", attention=t5_attention(heads=4)),
        dataclasses.replace(SPARSE, architecture="encoder_decoder", attention=GROUPED, tie_embeddings=True),
        with_moe(places=("attention",), shared_dim=32),
        dataclasses.replace(
            with_moe(places=("feed_forward", "attention"), router="gshard", k=2, shared_dim=32),
            architecture="encoder_decoder",
            attention=GroupedQuery(4, 2),
        ),
    ],
)
def test_total_is_the_size_of_the_initialised_model(config):
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert count_parameters(config).total == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (LLAMA_2_7B, 6_738_415_616, 6_738_415_616),
        (MISTRAL_7B, 7_241_732_096, 7_241_732_096),
        (MIXTRAL, 46_702_792_704, 12_879_925_248),
        (T5_BASE, 222_903_552, 222_903_552),
        (T5_11B, 11_307_321_344, 11_307_321_344),
        (T5_XXL, 11_135_332_352, 11_135_332_352),
    ],
)
def test_published_models(config, total, active):
    count = count_parameters(config)
    assert (count.total, count.active) == (total, active)


@pytest.mark.parametrize(
    ("config", "total", "billions"),
    [
        (switch(T5_BASE, 16), 1_072, 1.1),
        (switch(T5_BASE, 32), 1_979, 2.0),
        (switch(T5_BASE, 64), 3_791, 3.8),
        (switch(T5_BASE, 128), 7_415, 7.4),
        (switch(T5_BASE, 256), 14_664, 14.7),
        (switch(T5_LARGE, 128), 26_309, 26.3),
        (switch(T5_XXL, 128), 394_675, 395),
        (SWITCH_C, 1_571_376, 1571),
    ],
)
def test_switch_transformers_have_the_paper_s_parameters(config, total, billions):
    """`total` in millions; the paper's digits are those of table 7 and 9."""
    found = count_parameters(config).total
    assert round(found / 1e6) == total
    digits = 0 if billions > 100 else 1
    assert round(found / 1e9, digits) == billions


def test_active_parameters_do_not_grow_with_experts_but_for_the_router():
    few, many = count_parameters(with_moe(num_experts=4)), count_parameters(with_moe(num_experts=64))
    assert many.active - many.router == few.active - few.router == count_parameters(DENSE).total


def test_all_experts_active_is_everything_active():
    count = count_parameters(with_moe(router="uniform_random", k=8))
    assert count.active == count.total
