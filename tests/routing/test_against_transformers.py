"""Routers alone against those of transformers' models, capacity and all: weights, and their gradient to the logits.

Whole layers are compared in tests/layers/test_moe_against_transformers.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DbrxConfig, NllbMoeConfig, SwitchTransformersConfig
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from moe_jax.routing.router import Tokens
from tests.comparison import assert_close
from tests.routing.routers import make

G, S, E = 2, 12, 4


def switch(logits, capacity):
    """Their router reads its logits through an identity."""
    config = SwitchTransformersConfig(d_model=E, num_experts=E, expert_capacity=capacity, router_jitter_noise=0.0)
    router = SwitchTransformersTop1Router(config).eval()
    router.classifier.weight.data = torch.eye(E)
    mask, probability, _ = router(logits)
    return mask * probability


def nllb(logits, capacity, prioritized):
    config = NllbMoeConfig(
        d_model=E,
        num_experts=E,
        expert_capacity=capacity,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        batch_prioritized_routing=prioritized,
        moe_eval_capacity_token_fraction=-1.0,
    )
    router = NllbMoeTop2Router(config).eval()
    return torch.stack([router.route_tokens(group)[1] for group in logits])


def dbrx(logits, capacity):
    """It has no capacity: there is a seat for every token."""
    assert capacity == S
    experts = {"ffn_hidden_size": 2, "hidden_size": 2, "moe_num_experts": E, "moe_top_k": 3}
    block = DbrxFFN(DbrxConfig(d_model=2, ffn_config=experts))
    weight, expert = block.route_tokens_to_experts(logits.reshape(-1, E))
    return torch.zeros(G * S, E).scatter(1, expert, weight).reshape(G, S, E)


# name: their weights [G, S, E] of logits and capacity; our router, its k and options, and the capacities to compare.
ROUTERS = {
    "switch": (switch, "switch", 1, {}, (1, 2, 3, S)),
    "nllb": (lambda x, c: nllb(x, c, False), "gshard", 2, {"second_policy": "all"}, (1, 3, 6, S)),
    "nllb-prioritized": (
        lambda x, c: nllb(x, c, True),
        "st_moe",
        2,
        {"threshold": 0.0, "priority": "batch"},
        (1, 3, 6),
    ),
    "dbrx": (dbrx, "top_k", 3, {}, (S,)),
}


@pytest.mark.parametrize("name", ROUTERS)
@settings(max_examples=10)
@given(seed=st.integers(0, 999), data=st.data())
def test_a_router_is_theirs(name, seed, data):
    theirs, router, k, options, capacities = ROUTERS[name]
    capacity = data.draw(st.sampled_from(capacities))
    rng = np.random.default_rng(seed)
    logits, cotangent = (rng.normal(size=(G, S, E)).astype(np.float32) for _ in range(2))
    torch_logits = torch.tensor(logits, requires_grad=True)
    expected = theirs(torch_logits, capacity)
    expected.backward(torch.tensor(cotangent))
    module = make(router, E, k, capacity * E / (S * k), **options)

    @jax.jit
    def weights(logits):
        tokens = Tokens(logits, jnp.ones((G, S), bool))
        assignment = module.apply({"params": {"kernel": jnp.eye(E)}}, tokens, rngs={"routing": jax.random.key(0)})
        return assignment.combine_weights()

    actual, vjp = jax.vjp(weights, jnp.asarray(logits))
    assert_close(actual, expected.detach())
    assert_close(vjp(jnp.asarray(cotangent))[0], torch_logits.grad)
