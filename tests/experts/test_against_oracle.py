"""Every way of running experts equals the reference under every router, in value and in every gradient.

Compilation costs more than all else here, so routing and execution compile apart, and the chain rule joins
them; many draws share few shapes, and fewer draws each have their own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.experts.ffn import FFN_KINDS, LINEAR
from moe_jax.experts.oracle import oracle
from moe_jax.experts.run import EXECUTIONS
from tests.comparison import assert_close, assert_each_close
from tests.routing.routers import DECISIONS, decide

KINDS = FFN_KINDS | {"linear": LINEAR}
FAST = sorted(set(EXECUTIONS) - {"oracle"})
# G, S, D, F, E; capacity factor; what an expert computes.
SMALL, LARGE = (3, 5, 6, 8, 3), (2, 8, 4, 6, 4)
SIZES = [(3, "groups"), (9, "tokens"), (6, "model dim"), (6, "expert dim")]
CASES = [(SMALL, None, "swiglu"), (LARGE, 1.0, "geglu")]


def draw(shape, kind, seed=0):
    """Input, router kernel, expert weights and cotangent, of variance 1 / fan-in; vectors of weights of variance 1."""
    groups, tokens, model_dim, expert_dim, experts = shape
    rng = np.random.default_rng(seed)

    def normal(*size, fan_in=1):
        return jnp.asarray(rng.normal(size=size) * fan_in**-0.5, jnp.float32)

    shapes = KINDS[kind].shapes(model_dim, expert_dim)
    weights = {name: normal(experts, *shape, fan_in=shape[0]) for name, shape in shapes.items()}
    x = normal(groups, tokens, model_dim)
    width = expert_dim if KINDS[kind].linear else model_dim
    return x, normal(model_dim, experts, fan_in=model_dim), weights, normal(groups, tokens, width)


@functools.partial(jax.jit, static_argnames=("execution", "kind"))
def execute(execution, kind, x, assignment, weights, cotangent):
    """Output, and gradients of the input, of each assignment's weight, and of the experts' weights."""

    def apply(x, weight, weights):
        return EXECUTIONS[execution](x, assignment.replace(weight=weight), weights, KINDS[kind])

    y, vjp = jax.vjp(apply, x, assignment.weight, weights)
    return y, *vjp(cotangent)


@functools.partial(jax.jit, static_argnames=("router", "capacity_factor"))
def route(router, capacity_factor, x, kernel, favour, valid):
    """The assignment; `router_gradients` says what its weights' gradients make of it."""
    logits = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + favour[None, None]
    return decide(router, logits, valid, capacity_factor, 2)


@functools.partial(jax.jit, static_argnames=("router", "capacity_factor"))
def router_gradients(router, capacity_factor, x, kernel, favour, valid, cotangent):
    """Gradients of the input and of the kernel, by way of the assignment's weights."""
    _, vjp = jax.vjp(lambda x, kernel: route(router, capacity_factor, x, kernel, favour, valid).weight, x, kernel)
    return vjp(cotangent)


def along_experts(kind, x, assignment, weights, cotangent):
    """The output's cotangent as first less second expert's output, as drawn where no expert runs.

    A router's gradient is then made of sums of squares. Of cotangents drawn anew some few cancel in it, until little
    but rounding is left to compare.
    """
    first = assignment.choices is None or np.arange(assignment.token.shape[1]) < assignment.num_tokens
    sign = jnp.broadcast_to(jnp.where(first, 1.0, -1.0), assignment.weight.shape)
    y, *_ = execute("oracle", kind, x, assignment.replace(weight=sign), weights, cotangent)
    return jnp.where(y == 0, cotangent, y)


def assert_equal_oracle(executions, router, case, favour, valid, seed=0):
    """Compares each with the reference; returns the last one's output and gradients of the experts' weights."""
    shape, capacity_factor, kind = case
    x, kernel, weights, cotangent = draw(shape, kind, seed)
    routing = router, capacity_factor, x, kernel, favour, valid
    assignment = route(*routing)
    cotangent = along_experts(kind, x, assignment, weights, cotangent)

    def results(name):
        y, x_gradient, weight_gradient, gradients = execute(name, kind, x, assignment, weights, cotangent)
        x_by_router, kernel_gradient = router_gradients(*routing, weight_gradient)
        return y, x_gradient + x_by_router, kernel_gradient, gradients

    expected = results("oracle")
    for execution in executions:
        actual = results(execution)
        for one, other, what in zip(actual[:3], expected[:3], ("output", "input", "kernel"), strict=True):
            assert_close(one, other, what=f"{execution}: {what}")
        for name, gradient in expected[3].items():
            assert_each_close(actual[3][name], gradient, what=f"{execution}: {name}")
    return actual[0], actual[3]


@pytest.mark.parametrize("execution", FAST)
@pytest.mark.parametrize("router", DECISIONS)
@settings(max_examples=15)
@given(data=st.data())
def test_execution_equals_oracle(router, execution, data):
    case = data.draw(st.sampled_from(CASES), "case")
    groups, tokens, *_, experts = case[0]
    bits = data.draw(st.lists(st.integers(0, 9), min_size=groups * tokens, max_size=groups * tokens), "validity")
    valid = jnp.asarray(bits).reshape(groups, tokens) < data.draw(st.sampled_from([0, 7, 10]), "share valid")
    favour = data.draw(st.sampled_from([0.0, 3.0, 50.0]), "skew") * jax.nn.one_hot(0, experts)
    assert_equal_oracle([execution], router, case, favour, valid, data.draw(st.integers(0, 99), "seed"))


@settings(max_examples=3)
@given(data=st.data())
def test_every_execution_equals_the_oracle_in_any_shape(data):
    """Down to one token, one expert and width one, from no seat to spare to a seat for everyone, under any skew.

    All routers meet each shape, because those with as many choices share what is compiled for it.
    """
    groups, tokens, model_dim, expert_dim = (data.draw(st.integers(1, most), name) for most, name in SIZES)
    experts = data.draw(st.integers(1, 6), "experts")
    capacity_factor = data.draw(st.sampled_from([None, 0.1, 0.5, 1.0, 1.25, 2.0, 10.0]), "capacity factor")
    kind = data.draw(st.sampled_from(sorted(KINDS)), "kind")
    valid = np.random.default_rng(data.draw(st.integers(0, 99), "padding")).random((groups, tokens)) < 0.8
    case = (groups, tokens, model_dim, expert_dim, experts), capacity_factor, kind
    favour = data.draw(st.sampled_from([0.0, 3.0, 50.0]), "skew") * jax.nn.one_hot(0, experts)
    seed = data.draw(st.integers(0, 99), "seed")
    for router in (name for name, (only, _) in DECISIONS.items() if (only or 2) <= experts):
        assert_equal_oracle(FAST, router, case, favour, jnp.asarray(valid), seed)


@pytest.mark.parametrize("execution", FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_on_one_expert(execution, kind):
    """Without a capacity nothing is dropped under any skew; experts without a token get exactly no gradient."""
    favour = 100.0 * jax.nn.one_hot(2, 3)
    y, gradients = assert_equal_oracle([execution], "switch", (SMALL, None, kind), favour, jnp.ones((3, 5), bool))
    assert (np.abs(np.asarray(y)).max(axis=-1) > 0).all()
    for gradient in gradients.values():
        assert (gradient[:2] == 0).all()
        assert (gradient[2] != 0).any()


@pytest.mark.parametrize("execution", FAST)
@pytest.mark.parametrize("router", DECISIONS)
def test_no_valid_token(router, execution):
    valid = jnp.zeros((2, 8), bool)
    y, gradients = assert_equal_oracle([execution], router, CASES[1], jnp.zeros(4), valid)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves((y, gradients)))


@pytest.mark.parametrize("execution", FAST)
def test_capacity_that_binds(execution):
    """All tokens ask for one expert with two seats in each group: the first two of each are run."""
    y, _ = assert_equal_oracle([execution], "switch", CASES[1], 100.0 * jax.nn.one_hot(1, 4), jnp.ones((2, 8), bool))
    assert ((np.abs(np.asarray(y)).max(axis=-1) > 0) == (np.arange(8) < 2)[None]).all()


def test_oracle_is_the_definition():
    """The reference against NumPy loops over assignments, at float64's accuracy."""
    x, kernel, weights, _ = draw(LARGE, "swiglu")
    assignment = decide("gshard_all", x @ kernel, jnp.arange(16).reshape(2, 8) != 3, 1.0)
    expected = np.zeros(x.shape)
    x64, (gate, up, down) = np.asarray(x, np.float64), (np.asarray(weights[n], np.float64) for n in weights)
    assert 0 < assignment.kept.sum() < assignment.kept.size
    for g, a in np.ndindex(*assignment.token.shape):
        token, e = int(assignment.token[g, a]), int(assignment.expert[g, a])
        gated = x64[g, token] @ gate[e]
        hidden = gated / (1 + np.exp(-gated)) * (x64[g, token] @ up[e])
        expected[g, token] += bool(assignment.kept[g, a]) * float(assignment.weight[g, a]) * (hidden @ down[e])
    assert_close(oracle(x, assignment, weights, FFN_KINDS["swiglu"]), expected, 1e-6)


@pytest.mark.parametrize("execution", FAST)
@pytest.mark.parametrize("router", ["gshard_all", "expert_choice"])
def test_bfloat16_experts_stay_near_the_oracle(router, execution):
    """In bfloat16 the output has that type and float32's value to its precision, and strict promotion holds."""
    x, kernel, weights, cotangent = draw(LARGE, "swiglu")
    half = {name: w.astype(jnp.bfloat16) for name, w in weights.items()}
    assignment = decide(router, x @ kernel, jnp.ones((2, 8), bool), 1.0)

    y, *gradients = execute(
        execution, "swiglu", x.astype(jnp.bfloat16), assignment, half, cotangent.astype(jnp.bfloat16)
    )
    assert y.dtype == gradients[0].dtype == jnp.bfloat16
    assert gradients[1].dtype == jnp.float32
    assert_close(y, oracle(x, assignment, weights, FFN_KINDS["swiglu"]), 3e-2)
