"""The mixture layer against transformers' Switch layer, and padding that must never be heard of."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
    SwitchTransformersTop1Router,
)

from moe_jax.configuration import ConfigError
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.oracle import oracle
from moe_jax.layers.mode import Mode
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.routing.gshard import gshard
from moe_jax.routing.router import RouterModule
from moe_jax.routing.statistics import values
from moe_jax.routing.switch import Switch
from tests.comparison import assert_close, assert_trees_close
from tests.routing.routers import K

B, S, D, F, E = 3, 12, 6, 10, 4


def layer(router="switch", k=1, capacity_factor=1.0, training=False, dtype="float32", **fields):
    mixture = {"num_experts": E, "expert_dim": F, "ffn": "relu", "execution": "padded"}
    mixture |= {"router": router, "k": k, "capacity_factor": capacity_factor}
    return MoE(MoEConfig(**mixture | fields), Mode(training, jnp.dtype(dtype)))


def value_and_gradients(module, params, x, valid, cotangent):
    """Output, sown numbers, and gradients of input and parameters for the output's cotangent."""

    def apply(x, params):
        return module.apply({"params": params}, x, valid, rngs={"routing": jax.random.key(0)}, mutable=["routing"])

    @jax.jit
    def run(x, params):
        y, vjp, sown = jax.vjp(apply, x, params, has_aux=True)
        return y, values(sown["routing"]["router"]), vjp(cotangent)

    return run(x, params)


@pytest.mark.parametrize(("seats", "execution"), [(2, e) for e in sorted(EXECUTIONS)] + [(3, "padded"), (12, "padded")])
def test_switch_layer_is_that_of_transformers(seats, execution):
    """Outputs, and gradients of input, router and every expert, with a capacity per sequence that binds or does not."""
    torch.manual_seed(seats)
    sizes = SwitchTransformersConfig(
        d_model=D, d_ff=F, num_experts=E, expert_capacity=seats, dropout_rate=0.0, dense_act_fn="relu"
    )
    theirs = SwitchTransformersSparseMLP(sizes).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * p.shape[-1] ** -0.5)
    torch_x = torch.randn(B, S, D, requires_grad=True)
    cotangent = torch.randn(B, S, D)
    expected = theirs(torch_x)
    expected.backward(cotangent)
    dispatched, probability, _ = theirs.router(torch_x)
    dropped = dispatched.sum(dim=-1) == 0
    assert dropped.any() == (seats < 12)

    def ours(read):
        def stack(name):
            return jnp.stack([read(getattr(theirs.experts[f"expert_{e}"], name).weight).T for e in range(E)])

        kernel = read(theirs.router.classifier.weight).T
        return {"experts_up": stack("wi"), "experts_down": stack("wo"), "router": {"kernel": kernel}}

    params = ours(lambda p: jnp.asarray(p.detach().numpy()))
    gradients = ours(lambda p: jnp.asarray((torch.zeros_like(p) if p.grad is None else p.grad).numpy()))
    module = layer(capacity_factor=seats * E / S, execution=execution)
    x, valid = jnp.asarray(torch_x.detach().numpy()), jnp.ones((B, S), bool)
    y, sown, actual = value_and_gradients(module, params, x, valid, jnp.asarray(cotangent.numpy()))
    assert_close(y, expected.detach())
    assert_close(actual[0], torch_x.grad, what="input")
    assert_trees_close(actual[1], gradients)
    assert_close(sown["fraction_dropped"], float(dropped.float().mean()))
    assert_close(sown["confidence"], float(probability.detach().mean()))


def test_switch_router_of_transformers_counts_a_sequence_at_a_time():
    """What the comparison above rests on: releases that do not enforce the capacity would make it worthless."""
    config = SwitchTransformersConfig(d_model=D, num_experts=E, expert_capacity=2)
    router = SwitchTransformersTop1Router(config).eval()
    dispatched, _, _ = router(torch.ones(B, S, D))
    assert dispatched.sum().item() == 2 * B


@pytest.mark.parametrize("seats", [1, 3, 12])
def test_gshard_is_the_top_2_router_of_nllb(seats):
    """With every second choice asked and weights normalised before the drop; padding takes no seat in either."""
    torch.manual_seed(seats)
    config = NllbMoeConfig(
        d_model=D,
        num_experts=E,
        expert_capacity=seats,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        moe_eval_capacity_token_fraction=-1.0,
    )
    logits = torch.randn(S, E)
    padding = torch.rand(S) < 0.3
    _, expected = NllbMoeTop2Router(config).route_tokens(logits.clone(), padding_mask=padding)
    actual = gshard(jnp.asarray(logits.numpy())[None], jnp.asarray(~padding.numpy())[None], seats, "all")
    assert_close(actual.combine_weights()[0], expected, 1e-6)


ROUTERS = ("switch", "gshard", "expert_choice", "uniform_random")


@pytest.mark.parametrize(
    ("router", "execution"), [("gshard", e) for e in sorted(EXECUTIONS)] + [(r, "one_hot") for r in ROUTERS]
)
def test_padding_that_is_not_a_number_reaches_nothing(router, execution):
    """Not an output, a loss, a metric or a gradient: all are those of padding that is zero."""
    module = layer(router, K[router], execution=execution, ffn="swiglu")
    x = jax.random.normal(jax.random.key(1), (2, 8, D))
    valid = jnp.arange(16).reshape(2, 8) % 4 != 2
    start = layer(router, K[router], ffn="swiglu")
    params = jax.jit(start.init)({"params": jax.random.key(0), "routing": jax.random.key(0)}, x, valid).get("params")

    def loss(x, params):
        y, sown = module.apply({"params": params}, x, valid, rngs={"routing": jax.random.key(3)}, mutable=["routing"])
        sown = values(sown["routing"]["router"])
        scored = jnp.sum(jnp.where(valid[..., None], y, 0.0) ** 2)
        return scored + sown.get("balance_loss", 0.0) + sown.get("z_loss", 0.0), (y, sown)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    expected = run(jnp.where(valid[..., None], x, 0.0), params)
    actual = run(jnp.where(valid[..., None], x, jnp.nan), params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    chex.assert_tree_all_finite(actual)
    assert (actual[1][0][~valid] == 0).all()
    assert (actual[0][1][0][~valid] == 0).all()


@pytest.mark.parametrize("group_size", [4, 24])
def test_a_group_shares_one_capacity(group_size):
    """The layer on groups is the layer on sequences of the group's length, whatever the batch's shape."""
    x = jax.random.normal(jax.random.key(1), (2, 12, D))
    valid = jnp.arange(24).reshape(2, 12) % 7 != 2
    module = layer(group_size=group_size)
    params = jax.jit(module.init)(jax.random.key(0), x, valid)["params"]
    y = jax.jit(module.apply)({"params": params}, x, valid)
    regrouped = jax.jit(layer().apply)({"params": params}, x.reshape(-1, group_size, D), valid.reshape(-1, group_size))
    np.testing.assert_array_equal(y.reshape(regrouped.shape), regrouped)


def test_a_group_size_that_does_not_divide_the_batch_is_refused():
    x = jnp.ones((2, 12, D))
    with pytest.raises(ConfigError, match=r"^group_size is 7; accepted: a divisor of 24 tokens"):
        layer(group_size=7).init(jax.random.key(0), x, jnp.ones((2, 12), bool))


def test_the_router_sees_the_tokens_uncast():
    """Experts compute in bfloat16, the router on the float32 it was given: its decisions are float32's."""
    x = jax.random.normal(jax.random.key(1), (2, 8, D))
    valid = jnp.ones((2, 8), bool)
    params = jax.jit(layer().init)(jax.random.key(0), x, valid)["params"]

    def run(module):
        return jax.jit(functools.partial(module.apply, mutable=["routing"]))({"params": params}, x, valid)

    (_, exact), (y, half) = run(layer()), run(layer(dtype="bfloat16"))
    assert y.dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, half, exact)


@pytest.mark.parametrize("exploration", ["jitter", "dropout"])
def test_experts_never_see_what_explores(exploration):
    """The router's copy of the input is disturbed; what experts compute is of the input itself."""
    module = layer(Switch(exploration, jitter=0.5, dropout=0.5), capacity_factor=None, training=True)
    x = jax.random.normal(jax.random.key(0), (B, S, D))
    params = jax.jit(module.init)({"params": jax.random.key(1), "routing": jax.random.key(1)}, x)["params"]
    params["router"]["kernel"] *= 50.0

    def run(module):
        capture = {
            "capture_intermediates": lambda module, _: isinstance(module, RouterModule),
            "mutable": ["intermediates"],
        }
        y, seen = module.apply({"params": params}, x, rngs={"routing": jax.random.key(2)}, **capture)
        return y, seen["intermediates"]["router"]["__call__"][0]

    y, assignment = jax.jit(lambda: run(module))()
    weights = {name: params[f"experts_{name}"] for name in ("up", "down")}
    assert_close(y, oracle(x, assignment, weights, FFN_KINDS["relu"]))
    _, undisturbed = jax.jit(lambda: run(module.clone(mode=Mode())))()
    assert (assignment.expert != undisturbed.expert).any()
