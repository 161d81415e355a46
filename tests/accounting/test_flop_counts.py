"""Operations counted from the configuration against the program that JAX makes of the model."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from moe_jax.accounting.flops import flops_per_token
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.plan import Plan
from moe_jax.layers.attention import GroupedQuery
from moe_jax.layers.moe import MoEConfig
from moe_jax.layers.positions import T5Bias
from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.models.encoder_decoder import EncoderDecoder
from moe_jax.models.parameters import init_params

BATCH, LENGTH = 2, 128
DENSE = ModelConfig(vocab_size=512, num_layers=2, model_dim=256, ffn_dim=1024, attention=GroupedQuery(4))
SPARSE = dataclasses.replace(DENSE, moe_layers=(1,), moe=MoEConfig(num_experts=8, execution="padded"))


def with_moe(**fields) -> ModelConfig:
    return dataclasses.replace(SPARSE, moe=dataclasses.replace(SPARSE.moe, **fields))


CONFIGS = [
    DENSE,
    dataclasses.replace(DENSE, ffn="swiglu", attention=GroupedQuery(4, 2, 32), tie_embeddings=True),
    dataclasses.replace(DENSE, attention=GroupedQuery(4, positions=T5Bias())),
    SPARSE,
    dataclasses.replace(SPARSE, ffn="geglu", num_layers=4, moe_layers=(1, 3), scan_layers=True, remat=True),
    with_moe(router="gshard", k=2, expert_dim=512, capacity_factor=1.0),
    with_moe(execution="one_hot", group_size=64),
    with_moe(execution="oracle", capacity_factor=None),
    with_moe(router="uniform_random"),
    with_moe(places=("attention",), capacity_factor=1.0),
    with_moe(places=("feed_forward", "attention"), execution="one_hot", group_size=64),
]
TARGETS = 32
PAIRS = [
    dataclasses.replace(config, architecture="encoder_decoder")
    for config in (
        DENSE,
        dataclasses.replace(DENSE, attention=GroupedQuery(4, 2, 32, T5Bias()), tie_embeddings=True),
        dataclasses.replace(SPARSE, num_layers=4, moe_layers=(1, 3), scan_layers=True),
        with_moe(router="gshard", k=2, capacity_factor=1.0, group_size=32),
        with_moe(places=("feed_forward", "attention"), capacity_factor=1.0),
    )
]


def forward(config: ModelConfig, length: int = LENGTH):
    """The model's forward pass in training, and arguments for it that hold shapes only."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((BATCH, length), jnp.int32)

    def logits(params, tokens):
        segments = jnp.ones_like(tokens)
        model = Decoder(config, training=True)
        return model.apply({"params": params}, tokens, tokens, segments, rngs={"routing": jax.random.key(0)})

    return logits, (params, tokens)


def forward_pair(config: ModelConfig):
    """The same of an encoder-decoder."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens, targets = (jax.ShapeDtypeStruct((BATCH, length), jnp.int32) for length in (LENGTH, TARGETS))

    def logits(params, tokens, targets):
        texts = targets, targets, jnp.ones_like(targets), tokens, tokens, jnp.ones_like(tokens)
        return EncoderDecoder(config, True).apply({"params": params}, *texts, rngs={"routing": jax.random.key(0)})

    return logits, (params, tokens, targets)


def product_flops(jaxpr) -> int:
    """Two operations per multiply-add of every product of matrices in a program, in a loop as often as it runs.

    The weighted sums of the balance loss are products with a vector, and no more counted than other sums.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted, batched = equation.params["dimension_numbers"]
            shapes = [variable.aval.shape for variable in equation.invars]
            if all(len(s) > len(c) + len(b) for s, c, b in zip(shapes, contracted, batched, strict=True)):
                inner = math.prod(shapes[0][axis] for axis in contracted[0])
                total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(map(product_flops, jaxprs_in_params(equation.params)))
    return total


@pytest.mark.parametrize("config", CONFIGS)
def test_executed_flops_are_the_matrix_products_of_the_program(config):
    function, arguments = forward(config)
    counted = product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert flops_per_token(config, LENGTH).executed * BATCH * LENGTH == counted


@pytest.mark.parametrize("config", PAIRS)
def test_executed_flops_of_two_stacks_are_those_of_the_program(config):
    """A mean over the tokens of both."""
    function, arguments = forward_pair(config)
    counted = product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)
    flops = flops_per_token(config, LENGTH, TARGETS)
    assert flops.executed * BATCH * (LENGTH + TARGETS) == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("config", [DENSE, SPARSE])
def test_xla_counts_a_little_more(config):
    """XLA adds norms, softmax, positions and routing: half a percent at these widths."""
    function, arguments = forward(config)
    xla = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    assert 1.0 <= xla / (flops_per_token(config, LENGTH).executed * BATCH * LENGTH) < 1.01


@pytest.mark.parametrize("config", [DENSE, SPARSE])
def test_a_backward_pass_costs_two_forward_passes(config):
    function, arguments = forward(config)
    gradient = jax.grad(lambda params, tokens: function(params, tokens).sum())
    counted = product_flops(jax.make_jaxpr(gradient)(*arguments).jaxpr)
    assert 3 * flops_per_token(config, LENGTH).executed * BATCH * LENGTH == counted


@pytest.mark.parametrize("causal", [True, False])
def test_long_causal_sequences_leave_out_keys_that_nobody_sees(causal):
    """Of 256 keys a query meets those of its own 64 and of the 64s before it: 64, 128, 192 or 256."""
    config = dataclasses.replace(DENSE, causal=causal)
    function, arguments = forward(config, 256)
    counted, flops = product_flops(jax.make_jaxpr(function)(*arguments).jaxpr), flops_per_token(config, 256)
    assert flops.executed * BATCH * 256 == counted
    assert flops.attention_scores == 2 * 4 * 256 * ((64 + 128 + 192 + 256) / 4 if causal else 256)


def test_active_flops_do_not_grow_with_experts_but_for_the_router():
    few, many = (flops_per_token(with_moe(num_experts=n), LENGTH) for n in (4, 64))
    dense = flops_per_token(DENSE, LENGTH)
    assert few.forward - few.router == many.forward - many.router == dense.forward
    assert few.router == 2 * 256 * 4


def test_capacity_decides_what_is_executed():
    dense, half, double = (
        flops_per_token(c, LENGTH) for c in (DENSE, *(with_moe(capacity_factor=f) for f in (0.5, 2.0)))
    )
    layer = dense.ffn / 2
    assert (half.mixtures_executed, double.mixtures_executed) == (-0.5 * layer, layer)
    assert half.ffn == double.ffn == dense.ffn
    dropless = flops_per_token(with_moe(execution="dropless", capacity_factor=None), LENGTH)
    assert dropless.executed == dropless.forward


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_plan_decides_what_is_executed(execution):
    named = flops_per_token(with_moe(execution=execution, group_size=64), LENGTH)
    planned = flops_per_token(with_moe(group_size=64), LENGTH, plan=lambda moe: Plan(execution))
    assert planned == named
