"""The routers' Linen modules: parameters, precision, what they sow, their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import ROUTERS, Router
from moe_jax.routing.router import METRICS
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.decisions import decide
from tests.routing.equations import equations

G, S, D, E = 2, 8, 5, 4
X = jax.random.normal(jax.random.key(0), (G, S, D))
VALID = jnp.arange(G * S).reshape(G, S) % 5 != 3
K = {"switch": 1, "gshard": 2, "expert_choice": 2, "uniform_random": 2}
KERNEL = jax.random.normal(jax.random.key(3), (D, E))


def build(name, capacity_factor=1.0, **options):
    return ROUTERS[name](num_experts=E, k=K[name], capacity_factor=capacity_factor, **options)


def apply(module, x=X, seed=1, kernel=KERNEL):
    params = {"params": {"kernel": kernel}} if module.has_parameters else {}
    return module.apply(params, x, VALID, rngs={"routing": jax.random.key(seed)}, mutable=[METRICS])


@pytest.mark.parametrize("name", ROUTERS)
def test_parameters_are_float32_whatever_the_input(name):
    variables = build(name).init(
        {"params": jax.random.key(0), "routing": jax.random.key(0)}, X.astype(jnp.bfloat16), VALID
    )
    shapes = jax.tree.map(lambda p: (p.shape, p.dtype), variables.get("params", {}))
    assert shapes == ({"kernel": ((D, E), jnp.float32)} if ROUTERS[name].has_parameters else {})


@pytest.mark.parametrize(("name", "decision"), [("switch", "switch"), ("expert_choice", "expert_choice")])
def test_a_module_decides_on_its_logits(name, decision):
    assignment, _ = apply(build(name))
    expected = decide(decision, X @ KERNEL, VALID, 1.0, K[name])
    assert_close(assignment.combine_weights(), expected.combine_weights())


@pytest.mark.parametrize("name", ROUTERS)
def test_what_a_module_sows(name):
    """The losses it declares, equal to loops over its decision, and the metrics equal to counts."""
    assignment, sown = apply(build(name))
    sown = sown[METRICS]
    logits = np.asarray(X @ KERNEL)
    expected = references.counts(assignment, np.asarray(VALID))
    expected["capacity_factor"] = assignment.capacity * E / (S * K[name])
    assert {loss for loss in ("balance_loss", "z_loss") if loss in sown} == set(ROUTERS[name].losses)
    if "balance_loss" in sown:
        first = np.asarray(assignment.expert)[:, :S, None]
        expected["balance_loss"] = references.balance(references.softmax(logits), first, np.asarray(VALID))
    if "z_loss" in sown:
        expected["z_loss"] = references.z(logits, np.asarray(VALID))
    for metric, value in expected.items():
        np.testing.assert_allclose(sown[metric], value, rtol=1e-5, atol=1e-6, err_msg=metric)


@pytest.mark.parametrize("name", [name for name, router in ROUTERS.items() if router.has_parameters])
def test_losses_and_weights_reach_the_kernel(name):
    """Each alone has a gradient; the switch router's own weight too, because it is not renormalised."""

    def sown(loss):
        return lambda kernel: apply(build(name), kernel=kernel)[1][METRICS][loss]

    def weights(kernel):
        return (apply(build(name), kernel=kernel)[0].combine_weights() ** 2).sum()

    for function in (*map(sown, ROUTERS[name].losses), weights):
        assert jnp.abs(jax.grad(function)(KERNEL)).max() > 1e-4


OPTIONS = [("gshard", {"second_policy": p}) for p in ("all", "none", "threshold")] + [
    ("gshard", {"second_threshold": 0.9}),
    ("gshard", {"second_policy": "threshold", "second_threshold": 0.4}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_option_changes_the_decision(name, options):
    """From the default's, and from every other's."""
    others = [other for other_name, other in [*OPTIONS, (name, {})] if other_name == name and other != options]
    weights = apply(build(name, None, **options))[0].combine_weights()
    for other in others:
        assert (weights != apply(build(name, None, **other))[0].combine_weights()).any(), other


def test_every_option_is_tested():
    from moe_jax.routing import own_fields

    tested = {(name, field) for name, options in OPTIONS for field in options}
    assert tested == {(name, field) for name, router in ROUTERS.items() for field in own_fields(router)}


@pytest.mark.parametrize("name", ["gshard", "uniform_random"])
def test_draws_come_from_the_routing_stream(name):
    first, again, other = (apply(build(name, None), seed=seed)[0].combine_weights() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def floats(variables):
    return [v.aval.dtype for v in variables if jnp.issubdtype(getattr(v.aval, "dtype", jnp.int32), jnp.floating)]


@pytest.mark.parametrize("name", [name for name, router in ROUTERS.items() if router.has_parameters])
def test_router_computes_in_float32_on_bfloat16_tokens(name):
    """The tokens are cast up once, before the logits' matmul at full precision; after that there is no bfloat16."""
    x = X.astype(jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda x: apply(build(name), x))(x).jaxpr
    low = [e for e in equations(jaxpr) if jnp.bfloat16 in floats([*e.invars, *e.outvars])]
    assert [e.primitive.name for e in low] == ["convert_element_type"]
    assert floats(low[0].outvars) == [jnp.float32]
    products = [
        e for e in equations(jaxpr) if e.primitive.name == "dot_general" and e.outvars[0].aval.shape == (G, S, E)
    ]
    assert [e.params["precision"] for e in products] == [(jax.lax.Precision.HIGHEST,) * 2]
    picks = [e for e in equations(jaxpr) if e.primitive.name in ("argmax", "top_k")]
    assert [floats(e.invars) for e in picks] == [[jnp.float32]]


def test_classes_say_what_they_are():
    for router in ROUTERS.values():
        assert issubclass(router, Router)
        assert router.paper
        assert set(router.losses) <= {"balance_loss", "z_loss"}
