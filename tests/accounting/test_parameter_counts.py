import dataclasses
import math

import jax
import pytest

from moe_jax.accounting.parameters import count_parameters
from moe_jax.models.config import ModelConfig, MoEConfig
from moe_jax.models.parameters import init_params

DENSE = ModelConfig(vocab_size=300, num_layers=4, model_dim=64, num_heads=4, ffn_dim=96)
SPARSE = dataclasses.replace(DENSE, moe_layers=(1, 3), moe=MoEConfig(num_experts=8))

# Llama 2 7B, Mistral 7B and Mixtral 8x7B are decoders of this kind. The numbers are those of their checkpoints on the
# Hugging Face Hub; 46.7 and 12.9 billion are in the Mixtral paper (arXiv:2401.04088).
LLAMA_2_7B = ModelConfig(vocab_size=32000, num_layers=32, model_dim=4096, num_heads=32, ffn_dim=11008, ffn="swiglu")
MISTRAL_7B = dataclasses.replace(LLAMA_2_7B, ffn_dim=14336, num_kv_heads=8)
MIXTRAL = dataclasses.replace(
    MISTRAL_7B,
    moe_layers=tuple(range(32)),
    moe=MoEConfig(num_experts=8, router="gshard", k=2, capacity_factor=None, execution="dropless"),
)


def with_moe(**fields) -> ModelConfig:
    return dataclasses.replace(SPARSE, moe=dataclasses.replace(SPARSE.moe, **fields))


@pytest.mark.parametrize(
    "config",
    [
        DENSE,
        dataclasses.replace(DENSE, moe=MoEConfig(num_experts=8)),
        dataclasses.replace(DENSE, ffn="swiglu", num_kv_heads=2, head_dim=24, tie_embeddings=True),
        dataclasses.replace(DENSE, positions="t5"),
        SPARSE,
        dataclasses.replace(SPARSE, ffn="geglu", scan_layers=True),
        with_moe(expert_dim=32, router="gshard", k=2),
        with_moe(router="uniform_random"),
        dataclasses.replace(SPARSE, moe_layers=(0, 1, 2, 3)),
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
    ],
)
def test_published_models(config, total, active):
    count = count_parameters(config)
    assert (count.total, count.active) == (total, active)


def test_active_parameters_do_not_grow_with_experts_but_for_the_router():
    few, many = count_parameters(with_moe(num_experts=4)), count_parameters(with_moe(num_experts=64))
    assert many.active - many.router == few.active - few.router == count_parameters(DENSE).total


def test_all_experts_active_is_everything_active():
    count = count_parameters(with_moe(router="uniform_random", k=8))
    assert count.active == count.total
