"""What holds of every router's Linen module: parameters, precision, what it sows, its options, its bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.layers.moe import MoEConfig
from moe_jax.routing import ROUTERS, Router
from moe_jax.runtime.parameters import count
from tests.comparison import assert_close, assert_trees_close
from tests.routing import every, references
from tests.routing.equations import equations
from tests.routing.every import ASSIGNING, OPTIONS, D, E, G, K, S, build, make, route, state_after, variables

SEEDS, SHARES = st.integers(0, 999), st.sampled_from([0.0, 0.5, 0.8, 1.1])

each_router = pytest.mark.parametrize("name", ASSIGNING)
LEARNED = [name for name in ASSIGNING if ROUTERS[name].has_parameters]
# Losses that a gradient can change: hierarchical load counts what was asked for where a router draws no noise.
WITHOUT_GRADIENT = {("noisy_top_k", "load_loss"), ("vmoe", "load_loss"), ("hierarchical", "load_loss")}


@each_router
def test_parameters_are_float32_and_counted(name):
    router = build(name)
    start = router.init({"params": jax.random.key(0), "routing": jax.random.key(0)}, every.tokens(dtype=jnp.bfloat16))
    leaves = jax.tree.leaves(start.get("params", {}))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == count(router.router.parameters(D, S, router.setting))
    assert bool(leaves) == ROUTERS[name].has_parameters


@pytest.mark.parametrize("training", [False, True])
@each_router
@settings(max_examples=5)
@given(seed=SEEDS, share_valid=SHARES)
def test_what_a_module_sows(name, training, seed, share_valid):
    """The losses it declares, and metrics that equal counts of its decision."""
    tokens = every.tokens(seed, share_valid)
    assignment, sown = route(build(name, training=training), tokens)
    expected = references.counts(assignment, np.asarray(tokens.valid))
    expected["capacity_factor"] = assignment.capacity * E / (S * K[name])
    assert set(ROUTERS[name].losses) <= set(sown)
    for loss in ROUTERS[name].losses:
        assert jnp.isfinite(sown[loss])
        assert sown[loss].shape == ()
    for metric, value in expected.items():
        np.testing.assert_allclose(sown[metric], value, rtol=1e-5, atol=1e-6, err_msg=metric)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("capacity_factor", [0.5, None])
@each_router
@settings(max_examples=10)
@given(seed=SEEDS, share_valid=SHARES)
def test_weights_and_seats(name, capacity_factor, training, seed, share_valid):
    """Weights are finite and not negative, no seat is taken twice, no expert is over capacity, none runs padding."""
    tokens = every.tokens(seed, share_valid)
    assignment, _ = route(build(name, capacity_factor, training), tokens)
    weights, mask = np.asarray(assignment.combine_weights()), np.asarray(assignment.dispatch_mask())
    assert np.isfinite(weights).all()
    assert weights.min() >= 0
    assert mask.any() or not tokens.valid.any() or name == "remoe"
    assert mask.sum(axis=1).max() <= assignment.capacity
    assert not mask[~np.asarray(tokens.valid)].any()
    assert mask.sum() == assignment.kept.sum()
    for g in range(G):
        kept = np.asarray(assignment.kept[g])
        places = list(zip(np.asarray(assignment.expert[g])[kept], np.asarray(assignment.seat[g])[kept], strict=True))
        assert len(set(places)) == len(places)
    drops = ROUTERS[name].drops and capacity_factor is not None
    if not drops and name != "expert_choice":
        np.testing.assert_array_equal(assignment.kept, assignment.requested)
    if drops and name != "expert_choice":
        asked = np.zeros((G, E), int)
        np.add.at(asked, (np.arange(G)[:, None], assignment.expert), np.asarray(assignment.requested))
        np.testing.assert_array_equal(mask.sum(axis=1), np.minimum(asked, assignment.capacity))


@pytest.mark.parametrize("name", LEARNED)
def test_losses_and_weights_reach_the_parameters(name):
    """Each loss and the weights alone have a gradient; those of one expert per token too."""
    options = {"sparse_mixer": {"tolerance": 2.0}}.get(name, {})  # Else one expert stands alone, with weight 1.
    tokens, router = every.tokens(), build(name, None, **options)
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
    tokens, values = every.tokens(), variables(router)

    def total(params):
        return (route(router, tokens, values | {"params": params})[0].combine_weights() ** 2).sum()

    gradients = jax.tree_util.tree_leaves_with_path(jax.grad(total)(values["params"]))
    for path, gradient in gradients:
        assert jnp.abs(gradient).max() > 1e-4 or "noise_kernel" in str(path), path


@pytest.mark.parametrize("name", ["noisy_top_k", "vmoe", "hierarchical"])
def test_the_load_of_a_noisy_router_has_a_gradient_in_training(name):
    tokens, router = every.tokens(), build(name, None, training=True)
    values = variables(router)
    gradient = jax.grad(lambda params: route(router, tokens, values | {"params": params})[1]["load_loss"])(
        values["params"]
    )
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_option_changes_what_is_routed(name, options):
    """From the default, and from every other option: the weights of training, where capacity binds, or the state."""
    others = [other for other_name, other in [*OPTIONS, (name, {})] if other_name == name and other != options]

    def outcome(options):
        router = build(name, 0.75, training=True, **options)
        values = variables(router)
        assignment, sown = route(router, every.tokens(2, 1.1), values)
        state = values.get("router_state", {})
        return [assignment.combine_weights(), *jax.tree.leaves(state_after(router, state, sown) if state else {})]

    ours = outcome(options)
    for other in others:
        theirs = outcome(other)
        same = len(ours) == len(theirs) and all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))
        assert not same, other


def options_of(router):
    return {field.name for field in dataclasses.fields(router)}


def test_every_option_is_tested():
    """Rates of a state's update and the width of its first value are tested where that update is, starts below."""
    elsewhere = {("quantile", "rate"), ("remoe", "growth"), ("remoe", "start"), ("hierarchical", "groups")}
    elsewhere |= {("deepseek", "groups_per_token"), ("switch", "init_std"), ("gshard", "init_std")}
    tested = {(name, field) for name, options in OPTIONS for field in options}
    declared = {(name, field) for name, router in ROUTERS.items() for field in options_of(router)}
    assert declared - tested == elsewhere


@pytest.mark.parametrize("name", ["switch", "gshard"])
def test_a_projection_starts_as_wide_as_it_is_told(name):
    tokens = every.tokens()
    tokens = tokens.replace(x=jnp.tile(tokens.x, (1, 1, 100)))
    for std in (0.02, 0.5):
        kernel = build(name, init_std=std).init({"params": jax.random.key(0), "routing": jax.random.key(0)}, tokens)
        assert_close(jnp.std(kernel["params"]["kernel"]), std, 0.1)


@pytest.mark.parametrize("name", ["gshard", "uniform_random", "st_moe"])
def test_draws_come_from_the_routing_stream(name):
    router = build(name, None)
    first, again, other = (
        route(router, every.tokens(share_valid=1.1), seed=seed)[0].combine_weights() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["noisy_top_k", "vmoe", "sparse_mixer", "switch"])
def test_exploration_is_of_training_alone(name):
    options = {"switch": {"exploration": "jitter", "jitter": 0.5}}.get(name, {})
    tokens = every.tokens(share_valid=1.1)
    quiet, loud = (
        [route(build(name, None, training, **options), tokens, seed=seed)[0].combine_weights() for seed in (1, 2)]
        for training in (False, True)
    )
    np.testing.assert_array_equal(*quiet)
    assert (loud[0] != loud[1]).any()


# Draws have the shape of the batch, so a padded batch draws others; each is tested without them.
QUIET = {"gshard": {"second_policy": "all"}, "st_moe": {"threshold": 0.0}}
RANDOM = {"uniform_random"}


@pytest.mark.parametrize("name", [name for name in ASSIGNING if name not in RANDOM])
@settings(max_examples=5)
@given(seed=SEEDS)
def test_a_padded_batch_is_routed_as_the_unpadded_one(name, seed):
    """Padding behind the tokens changes no weight, loss or metric of theirs, and no gradient."""
    tokens = every.tokens(seed, share_valid=1.1)
    factor = 1.0 if name == "expert_choice" else None
    router = build(name, factor, **QUIET.get(name, {}))
    padding = every.tokens(seed + 1, 1.1, length=4)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), tokens, padding.replace(sequence_length=S))
    both = both.replace(valid=both.valid.at[:, S:].set(False), sequence_length=S + 4)
    values = variables(router)
    expected, sown = route(router, tokens, values)
    # As many seats for the longer group.
    longer = build(name, S / (S + 4)) if name == "expert_choice" else router
    actual, padded = route(longer, both, values)
    assert_close(actual.combine_weights()[:, :S], expected.combine_weights(), 1e-6)
    assert not actual.combine_weights()[:, S:].any()
    for metric in set(sown) - {"capacity_factor", "seats_filled"}:
        assert_close(padded[metric], sown[metric], 1e-5, metric)
    if name in LEARNED:
        assert_trees_close(gradients(longer, both, values), gradients(router, tokens, values))


def gradients(router, tokens, values):
    """Of the squares of the weights and of all losses, to the parameters."""

    def total(params):
        assignment, sown = route(router, tokens, values | {"params": params})
        losses = [sown[loss] for loss in router.router.losses]
        return (assignment.combine_weights() ** 2).sum() + sum(losses, jnp.float32(0.0))

    return jax.grad(total)(values["params"])


@settings(max_examples=5)
@given(seed=SEEDS, cut=st.integers(1, S - 1))
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ASSIGNING] + [("expert_choice", {"among": "seen"}), ("switch", {"rounds": 2})],
)
def test_a_later_token_never_changes_what_a_causal_router_decides(name, options, training, seed, cut):
    """Without a capacity, which may give a second choice's seat to a later first choice."""
    factor = 1.0 if options else None
    router = build(name, factor, training, **options)
    tokens, other = every.tokens(seed), every.tokens(seed + 1)
    changed = jax.tree.map(lambda x, y: jnp.concatenate([x[:, :cut], y[:, cut:]], axis=1), tokens, other)
    values = variables(router)
    before, after = (route(router, t, values)[0].combine_weights()[:, :cut] for t in (tokens, changed))
    if router.router.causal(router.setting):
        np.testing.assert_array_equal(before, after)
    else:
        assert name in ("expert_choice", "base", "sinkhorn") or options


def floats(values):
    return [v.aval.dtype for v in values if jnp.issubdtype(getattr(v.aval, "dtype", jnp.int32), jnp.floating)]


@pytest.mark.parametrize("training", [False, True])
@each_router
def test_a_router_computes_in_float32_on_bfloat16_tokens(name, training):
    """Tokens are cast up before anything else; products are at full precision, and nothing after is bfloat16."""
    router, tokens = build(name, training=training), every.tokens(dtype=jnp.bfloat16)
    values = variables(router)
    jaxpr = jax.make_jaxpr(lambda tokens: route(router, tokens, values))(tokens).jaxpr
    low = [e for e in equations(jaxpr) if jnp.bfloat16 in floats([*e.invars, *e.outvars])]
    assert {e.primitive.name for e in low} <= {"convert_element_type"}
    for equation in low:
        assert floats(equation.invars) == [jnp.bfloat16]
        assert floats(equation.outvars) == [jnp.float32]
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general" and D in e.invars[0].aval.shape]
    assert bool(products) == ROUTERS[name].has_parameters
    for product in products:
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize("name", ["switch", "top_k"])
def test_a_router_that_is_asked_to_rounds_its_logits_and_weights(name):
    """The weights are those of logits rounded to bfloat16, rounded again; float32 is what it is by itself."""
    tokens, half = every.tokens(share_valid=1.1), jnp.dtype(jnp.bfloat16)
    router = build(name, None)
    rounding = make(name, E, K[name], dtype=half)
    values = variables(router)

    def rounded(x):
        return np.asarray(x.astype(half).astype(jnp.float32))

    logits = rounded(tokens.x @ values["params"]["kernel"])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    actual = route(rounding, tokens, values)[0]
    chosen = np.take_along_axis(probabilities, np.asarray(actual.expert).reshape(G, K[name], S).swapaxes(1, 2), axis=-1)
    expected = chosen / (chosen.sum(axis=-1, keepdims=True) if name == "top_k" else 1.0)
    weight = np.asarray(actual.weight).reshape(G, K[name], S).swapaxes(1, 2)
    np.testing.assert_array_equal(weight, rounded(actual.weight).reshape(G, K[name], S).swapaxes(1, 2))
    np.testing.assert_allclose(weight, expected, rtol=2**-8)
    assert (np.asarray(route(router, tokens, values)[0].weight) != np.asarray(actual.weight)).mean() > 0.5


BALANCED = [name for name in LEARNED if "balance_loss" in ROUTERS[name].losses]


@pytest.mark.parametrize("name", BALANCED)
def test_a_balance_loss_is_1_at_balance_and_e_over_k_at_collapse(name):
    options = {"gshard": {"second_policy": "all"}}.get(name, {})
    router, k = build(name, None, **options), {"gshard": 1}.get(name, K[name])
    # Tokens that each prefer another expert, in turns, by the same margin: the shares are even.
    x = jnp.tile(jnp.eye(E, dtype=jnp.float32), (S // E, 1))[None]
    tokens = every.tokens(share_valid=1.1, groups=1)
    tokens = tokens.replace(x=x, ids=tokens.ids, valid=jnp.ones((1, S), bool))
    ring = jnp.eye(E) * 2.0 + jnp.roll(jnp.eye(E), 1, axis=1)
    start = router.init({"params": jax.random.key(0), "routing": jax.random.key(0)}, tokens)
    balanced = {**start, "params": {"kernel": ring}}
    assert_close(route(router, tokens, balanced)[1]["balance_loss"], 1.0, 1e-5)
    favoured = jnp.arange(E) < k
    collapsed = {**start, "params": {"kernel": jnp.where(favoured, 60.0, -60.0)[None] * jnp.ones((E, 1))}}
    assert_close(route(router, tokens, collapsed)[1]["balance_loss"], E / k, 1e-4)


LEVELLED = [name for name in ASSIGNING if ROUTERS[name].loss_levels]


@pytest.mark.parametrize("name", [name for name in LEVELLED if name != "hierarchical"])
def test_a_loss_is_another_at_another_level(name):
    """Two sequences in each of two groups: a mean over sequences, over groups, and the batch as one."""
    tokens = every.tokens().replace(sequence_length=S // 2)
    losses = {}
    for level in ROUTERS[name].loss_levels:
        router = make(name, E, K[name], loss_level=level)
        _, sown = route(router, tokens, variables(build(name, None)))
        losses[level] = [float(sown[loss]) for loss in ROUTERS[name].losses if loss != "z_loss"]
    assert len({tuple(values) for values in losses.values()}) == 3


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("hash", "batch", r"^loss_level is 'batch'; accepted: None, with router 'hash'"),
        ("hierarchical", "group", r"^loss_level is 'group'; accepted: batch, with router 'hierarchical'"),
    ],
)
def test_a_level_without_a_loss_is_refused(name, level, says):
    with pytest.raises(ConfigError, match=says):
        MoEConfig(num_experts=4, router=name, k=K[name], capacity_factor=None, loss_level=level)


def test_classes_say_what_they_are():
    for name, router in ROUTERS.items():
        assert issubclass(router, Router)
        assert router.paper
        assert 1991 <= router.year <= 2026, name
        assert all(coefficient >= 0 for coefficient in router.losses.values())
        assert all(f"      {field}: " in router.__doc__ for field in options_of(router)), name
        assert hash(router()) == hash(router())


ONE = {"renormalize": False}


@pytest.mark.parametrize(
    ("name", "k", "factor", "options", "losses", "says"),
    [
        ("switch", 2, 1.0, {}, {}, r"^k is 2; accepted: 1, with router 'switch'"),
        ("dense_mixture", 2, None, {}, {}, r"^k is 2; accepted: 4, with router 'dense_mixture'"),
        ("base", 1, 1.25, {}, {}, r"^capacity_factor is 1\.25; accepted: None, with router 'base'"),
        ("top_k", 2, None, {"scor": "sigmoid"}, {}, r"^router\.scor is not a field.*did you mean 'score'"),
        (
            "top_k",
            2,
            None,
            {},
            {"load_loss": 1.0},
            r"^losses is 'load_loss'; accepted: losses of router 'top_k': bal",
        ),
        ("top_k", 2, None, {}, {"z_loss": -1.0}, r"^losses\.z_loss is -1\.0; accepted: a number of at least 0"),
        ("switch", 1, 1.0, {"jitter": 1.5}, {}, r"^router\.jitter is 1\.5"),
        ("switch", 1, 1.0, {"dropout": 1.0}, {}, r"^router\.dropout is 1\.0"),
        ("switch", 1, 1.0, {"rounds": 5}, {}, r"^router\.rounds is 5; accepted: 1 to num_experts \(4\)"),
        ("switch", 1, 1.0, {"rounds": 2, "exploration": "sample"}, {}, r"rounds is 2; accepted: 1, with another"),
        ("deepseek", 2, None, {"num_groups": 3}, {}, r"num_groups is 3; accepted: a divisor of num_experts \(4\)"),
        ("deepseek", 2, None, {"groups_per_token": 2}, {}, r"groups_per_token is 2; accepted: 1 to num_groups"),
        ("deepseek", 2, None, {"num_groups": 4, "group_score": "max"}, {}, r"enough groups for k=2 experts"),
        ("top_k", 1, None, {}, {}, r"renormalize is True; accepted: False, with k=1"),
        ("deepseek", 1, None, {}, {}, r"renormalize is True; accepted: False, with k=1"),
        ("deepseek", 1, None, ONE | {"num_groups": 4}, {}, r"groups of two experts or more, with 'top2_sum'"),
        ("deepseek", 2, None, {"scale": 0.0}, {}, r"scale is 0\.0; accepted: a positive number"),
        ("expert_choice", 2, 1.0, {"most": 1}, {}, r"most is 1; accepted: k \(2\) to num_experts"),
        ("expert_choice", 2, 1.0, {"most": 2, "among": "seen"}, {}, r"most is 2; accepted: None"),
        ("expert_choice", 2, 1.0, {"entropy": 0.0}, {}, r"entropy is 0\.0; accepted: a positive number"),
        ("expert_choice", 2, 1.0, {"iterations": 0}, {}, r"iterations is 0; accepted: an integer of at least 1"),
        ("hash", 1, 1.0, {"by": "balanced"}, {}, r"counts is \(\); accepted: the count of each id"),
        ("hierarchical", 2, None, {"groups": 3}, {}, r"groups is 3; accepted: a divisor of num_experts"),
        ("hierarchical", 3, None, {}, {}, r"outer_k is 2; accepted: a divisor of k \(3\)"),
        ("hierarchical", 3, None, {"outer_k": 1}, {}, r"outer_k is 1; accepted: enough groups for k=3 experts; these"),
        (
            "hierarchical",
            3,
            None,
            {"outer_k": 3},
            {},
            r"outer_k is 3; accepted: 1 to groups \(2\)",
        ),
        ("hierarchical", 2, None, {"outer": "swich"}, {}, r"outer is 'swich'; accepted: .*did you mean 'switch'"),
        ("hierarchical", 2, None, {"outer": "switch"}, {}, r"^router\.outer\.k is 2; accepted: 1, with"),
        ("hierarchical", 2, None, {"inner": {"kind": "switch", "x": 1}}, {}, r"^router\.inner\.x is not a f"),
        ("hierarchical", 2, None, {"outer": "hierarchical"}, {}, r"outer is 'hierarchical'; accepted: a router of one"),
        (
            "hierarchical",
            2,
            None,
            {"inner": "soft_moe"},
            {},
            r"inner is 'soft_moe'; accepted: a router of one level that",
        ),
        ("remoe", 2, None, {"growth": 1.0}, {}, r"growth is 1\.0; accepted: a number above 1"),
        ("quantile", 2, None, {"rate": 0.0}, {}, r"rate is 0\.0; accepted: above 0, to 1"),
        ("base", 1, None, {"tolerance": 0.0}, {}, r"tolerance is 0\.0; accepted: a number from 4e-08 to below 1"),
        ("sinkhorn", 2, None, {"iterations": 0}, {}, r"iterations is 0; accepted: an integer of at least 1"),
        ("sparse_mixer", 2, None, {"tolerance": 0.0}, {}, r"tolerance is 0\.0; accepted: a positive number"),
        ("st_moe", 2, None, {"threshold": -0.1}, {}, r"threshold is -0\.1; accepted: a number of at least 0"),
    ],
)
def test_what_a_router_cannot_do_is_refused_by_name(name, k, factor, options, losses, says):
    with pytest.raises(ConfigError, match=says):
        MoEConfig(num_experts=4, router={"kind": name} | options, k=k, capacity_factor=factor, losses=losses)
