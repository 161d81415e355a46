"""Soft MoE against a transcription of its paper's algorithm, alone and in a layer, in every way of running experts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.routing.router import Tokens
from moe_jax.routing.statistics import METRICS, values
from moe_jax.runtime.parameters import count
from tests.comparison import assert_close, assert_trees_close
from tests.routing import references
from tests.routing.routers import make

G, S, D, F, E = 2, 12, 5, 7, 4
VALID = np.arange(S)[None] < np.asarray([[S], [9]])


def reference(x, params, k):
    """Outputs in float64, token by token and slot by slot (algorithm 1), ReLU experts."""
    kernel = np.asarray(params["router"]["kernel"], np.float64)
    scale = float(params["router"]["scale"])
    up, down = (np.asarray(params[f"experts_{name}"], np.float64) for name in ("up", "down"))
    per_expert = -(-S * k // E)
    assert kernel.shape == (D, E * per_expert)
    y = np.zeros(x.shape)
    for g in range(G):
        rows = np.asarray(x[g][VALID[g]], np.float64)
        units = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True) + 1e-6)
        logits = units @ (scale * kernel / np.sqrt((kernel**2).sum(axis=0, keepdims=True) + 1e-6))
        dispatch, combine = references.softmax(logits.T).T, references.softmax(logits)
        for slot in range(E * per_expert):
            e = slot // per_expert
            hidden = np.maximum((dispatch[:, slot] @ rows) @ up[e], 0)
            y[g][VALID[g]] += np.outer(combine[:, slot], hidden @ down[e])
    return y


def layer(k=1, **fields):
    router = {"router": "soft_moe", "capacity_factor": None, "k": k, "group_size": S}
    return MoE(MoEConfig(num_experts=E, expert_dim=F, ffn="relu", **router, **fields))


def drawn(module, seed=0):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(G, S, D)), jnp.float32)
    start = module.init(jax.random.key(0), x)["params"]
    rng = np.random.default_rng(seed + 1)
    return x, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), start)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("k", [1, 2])
def test_a_layer_is_the_paper_s_algorithm(execution, k):
    module = layer(k, execution=execution)
    x, params = drawn(module)
    y = module.apply({"params": params}, x, jnp.asarray(VALID))
    assert_close(y, reference(x, params, k))
    assert (y[~VALID] == 0).all()


def test_the_gradients_of_every_execution_are_the_oracle_s():
    x, params = drawn(layer())

    def gradients(execution):
        module = layer(execution=execution)
        return jax.grad(lambda x, p: (module.apply({"params": p}, x, jnp.asarray(VALID)) ** 2).sum(), (0, 1))(x, params)

    expected = gradients("oracle")
    for execution in sorted(set(EXECUTIONS) - {"oracle"}):
        assert_trees_close(gradients(execution), expected)


def route(x, valid, dtype=jnp.float32):
    router = make("soft_moe", E, 1)
    params = router.init(jax.random.key(0), Tokens(x, valid))["params"]
    decision, sown = router.apply({"params": params}, Tokens(x.astype(dtype), valid), mutable=[METRICS])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count(router.router.parameters(D, S, router.setting))
    return decision, values(sown[METRICS])


def test_weights_are_shares_and_metrics_count_them():
    decision, sown = route(drawn(layer())[0], jnp.asarray(VALID))
    assert_close(decision.dispatch.sum(axis=1), np.ones((G, E * decision.per_expert)))
    assert_close(decision.combine.sum(axis=2), VALID.astype(np.float32))
    assert (decision.dispatch >= 0).all()
    load = np.asarray(decision.combine).reshape(G, S, E, -1).sum(axis=(0, 1, 3)) / VALID.sum()
    assert_close(sown["load"], load)
    assert_close(sown["load_max_over_mean"], load.max() * E)
    assert sown["fraction_dropped"] == sown["tokens_unrouted"] == 0


def test_a_group_of_padding_alone_takes_and_gives_nothing():
    decision, sown = route(drawn(layer())[0], jnp.zeros((G, S), bool))
    assert not decision.dispatch.any()
    assert not decision.combine.any()
    chex.assert_tree_all_finite(sown)


def test_slots_are_weighed_in_float32():
    decision, _ = route(drawn(layer())[0], jnp.asarray(VALID), jnp.bfloat16)
    assert decision.dispatch.dtype == decision.combine.dtype == jnp.float32
    assert decision.enter(jnp.ones((G, S, D), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, r"^group_size is None; accepted: an integer, with router 'soft_moe'"),
        ({"group_size": 8, "combine": "mix"}, r"^combine is 'mix'; accepted: output"),
    ],
)
def test_what_slots_cannot_do_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        MoEConfig(num_experts=4, router="soft_moe", capacity_factor=None, **fields)
