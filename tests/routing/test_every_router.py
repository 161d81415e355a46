"""Properties of every router's module: parameters, precision, seats, what it reports, padding, causality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.configuration import ConfigError
from moe_jax.routing import ROUTERS
from moe_jax.runtime.parameters import count
from tests.comparison import assert_close, assert_trees_close
from tests.routing import references, routers
from tests.routing.equations import equations
from tests.routing.problems import SEEDS
from tests.routing.routers import ASSIGNING, D, E, G, K, S, build, make, route, variables

SHARES = st.sampled_from([0.0, 0.5, 0.8, 1.1])


each_router = pytest.mark.parametrize("name", ASSIGNING)


LEARNED = [name for name in ASSIGNING if ROUTERS[name].has_parameters]


@each_router
def test_parameters_are_float32_and_counted(name):
    router = build(name)
    start = router.init({"params": jax.random.key(0), "routing": jax.random.key(0)}, routers.tokens(dtype=jnp.bfloat16))
    leaves = jax.tree.leaves(start.get("params", {}))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == count(router.router.parameters(D, S, router.setting))
    assert bool(leaves) == ROUTERS[name].has_parameters


def test_a_router_that_draws_says_what_it_draws_from():
    module = routers.build("gshard", second_policy="random")
    variables = module.init(jax.random.key(0), routers.tokens())
    with pytest.raises(
        ConfigError, match=r"rngs\['routing'\] is None; accepted: rngs=.*, from which router 'gshard' draws"
    ):
        module.apply(variables, routers.tokens())


@pytest.mark.parametrize("training", [False, True])
@each_router
@settings(max_examples=5)
@given(seed=SEEDS, share_valid=SHARES)
def test_what_a_module_sows(name, training, seed, share_valid):
    """The losses it declares, and metrics that equal counts of its decision."""
    tokens = routers.tokens(seed, share_valid)
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
    tokens = routers.tokens(seed, share_valid)
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


@pytest.mark.parametrize("name", ["gshard", "uniform_random", "st_moe"])
def test_draws_come_from_the_routing_stream(name):
    router = build(name, None)
    first, again, other = (
        route(router, routers.tokens(share_valid=1.1), seed=seed)[0].combine_weights() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["noisy_top_k", "vmoe", "sparse_mixer", "switch"])
def test_exploration_is_of_training_alone(name):
    options = {"switch": {"exploration": "jitter", "jitter": 0.5}}.get(name, {})
    tokens = routers.tokens(share_valid=1.1)
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
    tokens = routers.tokens(seed, share_valid=1.1)
    factor = 1.0 if name == "expert_choice" else None
    router = build(name, factor, **QUIET.get(name, {}))
    padding = routers.tokens(seed + 1, 1.1, length=4)
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
    """Gradients of the squares of the weights and of all losses, to the parameters."""

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
    tokens, other = routers.tokens(seed), routers.tokens(seed + 1)
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
    router, tokens = build(name, training=training), routers.tokens(dtype=jnp.bfloat16)
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
    tokens, half = routers.tokens(share_valid=1.1), jnp.dtype(jnp.bfloat16)
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
