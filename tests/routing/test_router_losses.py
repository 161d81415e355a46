"""Losses of every router: gradients, balance and collapse, levels."""

import jax
import jax.numpy as jnp
import pytest

from moe_jax.layers.moe import MoEConfig
from moe_jax.routing import ROUTERS
from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.routers import ASSIGNING, E, K, S, build, make, route, variables

LEARNED = [name for name in ASSIGNING if ROUTERS[name].has_parameters]


# Losses that a gradient can change: hierarchical load counts what was asked for where a router draws no noise.
WITHOUT_GRADIENT = {("noisy_top_k", "load_loss"), ("vmoe", "load_loss"), ("hierarchical", "load_loss")}


@pytest.mark.parametrize("name", LEARNED)
def test_losses_and_weights_reach_the_parameters(name):
    """Each loss and the weights alone have a gradient; those of one expert per token too."""
    options = {"sparse_mixer": {"tolerance": 2.0}}.get(name, {})  # Else one expert stands alone, with weight 1.
    tokens, router = routers.tokens(), build(name, None, **options)
    values = variables(router)

    def gradient(function):
        def scalar(params):
            return function(*route(router, tokens, values | {"params": params}))

        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(jax.grad(scalar)(values["params"])))

    for loss in ROUTERS[name].losses:
        assert gradient(lambda _, sown, loss=loss: sown[loss]) > 1e-4 or (name, loss) in WITHOUT_GRADIENT, loss
    assert gradient(lambda assignment, _: (assignment.combine_weights() ** 2).sum()) > 1e-4


@pytest.mark.parametrize("name", [name for name in LEARNED if ROUTERS[name].choices_allowed is None])
def test_one_choice_trains_its_router(name):
    """It has a weight that is not the constant 1: the router of each level gets a gradient."""
    options = {"sparse_mixer": {"tolerance": 2.0}, "hierarchical": {"outer_k": 1}}.get(name, {})
    options |= {"renormalize": False} if name in ("top_k", "deepseek") else {}
    MoEConfig(num_experts=E, router={"kind": name} | options, capacity_factor=None)
    router = make(name, E, 1, **options)
    tokens, values = routers.tokens(), variables(router)

    def total(params):
        return (route(router, tokens, values | {"params": params})[0].combine_weights() ** 2).sum()

    gradients = jax.tree_util.tree_leaves_with_path(jax.grad(total)(values["params"]))
    for path, gradient in gradients:
        assert jnp.abs(gradient).max() > 1e-4 or "noise_kernel" in str(path), path


@pytest.mark.parametrize("name", ["noisy_top_k", "vmoe", "hierarchical"])
def test_the_load_of_a_noisy_router_has_a_gradient_in_training(name):
    tokens, router = routers.tokens(), build(name, None, training=True)
    values = variables(router)
    gradient = jax.grad(lambda params: route(router, tokens, values | {"params": params})[1]["load_loss"])(
        values["params"]
    )
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4


BALANCED = [name for name in LEARNED if "balance_loss" in ROUTERS[name].losses]


@pytest.mark.parametrize("name", BALANCED)
def test_a_balance_loss_is_1_at_balance_and_e_over_k_at_collapse(name):
    options = {"gshard": {"second_policy": "all"}}.get(name, {})
    router, k = build(name, None, **options), {"gshard": 1}.get(name, K[name])
    # Tokens that each prefer another expert, in turns, by the same margin: the shares are even.
    x = jnp.tile(jnp.eye(E, dtype=jnp.float32), (S // E, 1))[None]
    tokens = routers.tokens(share_valid=1.1, groups=1)
    tokens = tokens.replace(x=x, ids=tokens.ids, valid=jnp.ones((1, S), bool))
    ring = jnp.eye(E) * 2.0 + jnp.roll(jnp.eye(E), 1, axis=1)
    start = router.init({"params": jax.random.key(0), "routing": jax.random.key(0)}, tokens)
    balanced = {**start, "params": {"kernel": ring}}
    assert_close(route(router, tokens, balanced)[1]["balance_loss"], 1.0, 1e-5)
    favoured = jnp.arange(E) < k
    collapsed = {**start, "params": {"kernel": jnp.where(favoured, 60.0, -60.0)[None] * jnp.ones((E, 1))}}
    assert_close(route(router, tokens, collapsed)[1]["balance_loss"], E / k, 1e-4)


LEVELLED = [name for name in ASSIGNING if ROUTERS[name].loss_levels and set(ROUTERS[name].losses) - {"z_loss"}]


@pytest.mark.parametrize("name", [name for name in LEVELLED if name != "hierarchical"])
def test_a_loss_is_another_at_another_level(name):
    """Two sequences in each of two groups: a mean over sequences, over groups, and the batch as one."""
    tokens = routers.tokens().replace(sequence_length=S // 2)
    losses = {}
    for level in ROUTERS[name].loss_levels:
        router = make(name, E, K[name], loss_level=level)
        _, sown = route(router, tokens, variables(build(name, None)))
        losses[level] = [float(sown[loss]) for loss in ROUTERS[name].losses if loss != "z_loss"]
    assert len({tuple(values) for values in losses.values()}) == 3
