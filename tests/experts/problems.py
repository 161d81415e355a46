"""Small problems for experts: drawn inputs, routing and execution, compiled apart and joined by the chain rule.

Compilation costs more than all else in the tests of experts, so many draws share few shapes.

G groups, S tokens of a group, D model width, F expert width, E experts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFN_KINDS, LINEAR
from tests.comparison import assert_close, assert_each_close
from tests.routing.routers import decide

KINDS = FFN_KINDS | {"linear": LINEAR}
FAST = sorted(set(EXECUTIONS) - {"oracle"})
# G, S, D, F, E.
SMALL, LARGE = (3, 5, 6, 8, 3), (2, 8, 4, 6, 4)


def draw(shape, kind, seed=0):
    """Input, router kernel, expert parameters and cotangent, of variance 1 / fan-in; vectors of variance 1."""
    groups, tokens, model_dim, expert_dim, experts = shape
    rng = np.random.default_rng(seed)

    def normal(*size, fan_in=1):
        return jnp.asarray(rng.normal(size=size) * fan_in**-0.5, jnp.float32)

    shapes = KINDS[kind].shapes(model_dim, expert_dim)
    params = {name: normal(experts, *shape, fan_in=shape[0]) for name, shape in shapes.items()}
    x = normal(groups, tokens, model_dim)
    width = expert_dim if KINDS[kind].linear else model_dim
    return x, normal(model_dim, experts, fan_in=model_dim), params, normal(groups, tokens, width)


@functools.partial(jax.jit, static_argnames=("execution", "kind"))
def execute(execution, kind, x, assignment, params, cotangent):
    """Output, and gradients of the input, of each assignment's weight, and of the experts' parameters."""

    def apply(x, weight, params):
        return EXECUTIONS[execution].run(x, assignment.replace(weight=weight), params, KINDS[kind])

    y, vjp = jax.vjp(apply, x, assignment.weight, params)
    return y, *vjp(cotangent)


@functools.partial(jax.jit, static_argnames=("router", "capacity_factor"))
def route(router, capacity_factor, x, kernel, favour, valid):
    """The assignment; `router_gradients` carries the gradients of its weights on."""
    logits = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + favour[None, None]
    return decide(router, logits, valid, capacity_factor, 2)


@functools.partial(jax.jit, static_argnames=("router", "capacity_factor"))
def router_gradients(router, capacity_factor, x, kernel, favour, valid, cotangent):
    """Gradients of the input and of the kernel, by way of the assignment's weights."""
    _, vjp = jax.vjp(lambda x, kernel: route(router, capacity_factor, x, kernel, favour, valid).weight, x, kernel)
    return vjp(cotangent)


def along_experts(kind, x, assignment, params, cotangent):
    """The output's cotangent as first less second expert's output, as drawn where no expert runs.

    A router's gradient is then made of sums of squares. Of cotangents drawn anew some few cancel in it, until little
    but rounding is left to compare.
    """
    first = assignment.choices is None or np.arange(assignment.token.shape[1]) < assignment.num_tokens
    sign = jnp.broadcast_to(jnp.where(first, 1.0, -1.0), assignment.weight.shape)
    y, *_ = execute("oracle", kind, x, assignment.replace(weight=sign), params, cotangent)
    return jnp.where(y == 0, cotangent, y)


def assert_equal_oracle(executions, router, case, favour, valid, seed=0):
    """Compares each with the reference; returns the last one's output and gradients of the experts' parameters."""
    shape, capacity_factor, kind = case
    x, kernel, params, cotangent = draw(shape, kind, seed)
    routing = router, capacity_factor, x, kernel, favour, valid
    assignment = route(*routing)
    cotangent = along_experts(kind, x, assignment, params, cotangent)

    def results(name):
        y, x_gradient, weight_gradient, gradients = execute(name, kind, x, assignment, params, cotangent)
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
