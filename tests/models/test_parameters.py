"""Starting parameters, and models that scan over layers or recompute them: the same model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.decoder import Decoder
from moe_jax.models.parameters import init_params
from moe_jax.models.paths import stack_layers, unstack_layers
from moe_jax.runtime.remat import SAVEABLE
from tests.comparison import assert_close, assert_trees_close
from tests.models import small
from tests.routing.equations import equations

RANDOM = {"router": "gshard", "k": 2}
SWITCH = {"router": "switch", "capacity_factor": 1.0}
CHOICE = {"router": "expert_choice", "k": 2, "allow_noncausal_router": True}
GSHARD = {"router": {"kind": "gshard", "second_policy": "all"}, "k": 2}
KEY = jax.random.key(0)


def loss_and_gradients(config, params):
    return jax.jit(jax.value_and_grad(lambda p: small.loss(config, p, small.batch())))(params)


CONFIGS = {
    "dense": small.config(num_layers=2),
    "every second layer": small.config(SWITCH, num_layers=4, moe_layers=(1, 3)),
    "every layer": small.config(GSHARD, moe_layers=(0, 1)),
    "no repeats": small.config(SWITCH, moe_layers=(1,)),
    "t5": small.config(attention={"positions": "t5"}),
    "expert choice": small.config(CHOICE, moe_layers=(0, 1)),
}


def test_a_model_s_relative_bias_starts_as_widely_as_asked():
    narrow, wide = (
        small.start(small.config(attention={"positions": {"kind": "t5", "init_std": std}}))["relative_bias"]["table"]
        for std in (0.02, 0.5)
    )
    np.testing.assert_allclose(wide, 25 * narrow, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_scan_and_remat_change_no_number(name):
    """Together for every model, with all saved that can be, and each alone for one."""
    config = CONFIGS[name]
    alone = [(True, False), (False, True)] if name == "every second layer" else []
    params = small.start(config)
    loss, gradients = loss_and_gradients(config, params)
    for scan, remat in [*alone, (True, True)]:
        saves = tuple(SAVEABLE) if scan and remat else ()
        other = dataclasses.replace(config, scan_layers=scan, remat=remat, remat_saves=saves)
        start = stack_layers(params, other) if scan else params
        other_loss, other_gradients = loss_and_gradients(other, start)
        assert_close(other_loss, loss, 1e-6)
        assert_trees_close(unstack_layers(other_gradients, other) if scan else other_gradients, gradients)


def test_scanned_layers_draw_different_experts():
    """The routers' stream is split over a scan: two layers of one period do not repeat each other's draws."""
    config = small.config({"router": "uniform_random"}, moe_layers=(0, 1), scan_layers=True)
    apply = jax.jit(functools.partial(Decoder(config).apply, mutable=["routing"]))
    _, sown = apply({"params": small.start(config)}, *small.batch(), rngs={"routing": KEY})
    (load,) = sown["routing"]["segment_0"]["block_0"]["moe"]["router"]["load"].sums
    assert load.shape == (2, 4)
    assert (load[0] != load[1]).any()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("moe", [SWITCH, GSHARD, RANDOM, CHOICE], ids=["switch", "gshard", "random", "choice"])
def test_remat_never_decides_again(moe, scan):
    """The gradient's program decides and draws as often with remat as without, though it computes more."""
    counts = []
    for remat in (False, True):
        config = small.config(moe, moe_layers=(0, 1), scan_layers=scan, remat=remat)
        params = jax.eval_shape(lambda config=config: init_params(config, KEY))
        program = jax.jit(jax.grad(lambda p, config=config: small.loss(config, p, small.batch())))
        names = [e.primitive.name for e in equations(jax.make_jaxpr(program)(params).jaxpr)]
        assert names.count("exp") > 0
        counts.append({n: names.count(n) for n in ("argmax", "top_k", "random_bits", "dot_general")})
    plain, rematerialised = counts
    assert rematerialised.pop("dot_general") > plain.pop("dot_general")
    assert plain["argmax"] + plain["top_k"] == (1 if scan else 2)
    assert rematerialised == plain


@pytest.mark.parametrize(("name", "spared"), [("attention_heads", 3), ("attention_mixed", 1), ("ffn_inner", 2)])
def test_what_remat_saves_is_not_computed_again(name, spared):
    """Products of matrices in the gradient's program, in one layer of gated networks."""

    def products(**fields):
        config = dataclasses.replace(small.config(num_layers=1), ffn="swiglu", **fields)
        params = jax.eval_shape(lambda: init_params(config, KEY))
        program = jax.grad(lambda p: small.loss(config, p, small.batch()))
        names = [e.primitive.name for e in equations(jax.make_jaxpr(program)(params).jaxpr)]
        return names.count("dot_general")

    assert products(remat=True) - products(remat=True, remat_saves=(name,)) == spared


def test_stack_and_unstack_are_inverses():
    config = dataclasses.replace(CONFIGS["every second layer"], scan_layers=True)
    unrolled = init_params(dataclasses.replace(config, scan_layers=False), KEY)
    stacked = init_params(config, KEY)
    assert set(stacked["segment_0"]) == {"block_0", "block_1"}
    assert stacked["segment_0"]["block_1"]["moe"]["experts_up"].shape == (2, 4, 16, 24)
    np.testing.assert_array_equal(
        stacked["segment_0"]["block_1"]["moe"]["experts_up"][1], unrolled["layer_3"]["moe"]["experts_up"]
    )
    for one, other in ((unstack_layers(stacked, config), unrolled), (stack_layers(unrolled, config), stacked)):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_models_share_the_start_of_what_they_share():
    """Dense and sparse, any router, any number of experts: the same embedding, attention, norms and dense layers."""
    configs = [
        small.config(),
        small.config(SWITCH),
        small.config(GSHARD | {"group_size": 6}),
        small.config(SWITCH | {"num_experts": 2}, dtype="bfloat16", remat=True),
        small.config(SWITCH, scan_layers=True),
    ]
    starts = [init_params(c, KEY) for c in configs]
    starts[-1] = unstack_layers(starts[-1], configs[-1])
    for params in starts[1:]:
        params = jax.tree.map(lambda x: x, params)
        dense = dict(starts[0])
        params["layer_1"].pop("moe")
        dense["layer_1"] = {k: v for k, v in dense["layer_1"].items() if k != "feed_forward"}
        jax.tree.map(np.testing.assert_array_equal, params, dense)


def test_starting_scales():
    """Variance init_scale / fan-in per expert: the axis of experts is no fan-in."""
    config = small.config(SWITCH | {"num_experts": 8}, model_dim=64, ffn_dim=128, init_scale=0.1, ffn="relu")
    params = small.start(config)
    moe = params["layer_1"]["moe"]
    for weights, fan_in in (
        (moe["experts_up"], 64),
        (moe["experts_down"], 128),
        (params["layer_0"]["feed_forward"]["down"], 128),
        (params["layer_0"]["attention"]["query"]["kernel"], 64),
    ):
        assert_close(jnp.std(weights), np.sqrt(0.1 / fan_in), 0.03)
    assert_close(jnp.std(params["embedding"]["embedding"]), 64**-0.5, 0.05)
