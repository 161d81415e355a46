"""Experts on one device by the reference, and on a mesh by a strategy, with all gradients.

G groups, S tokens of a group, D model width, F expert width, E experts.
"""

import functools

import jax

from moe_jax.experts.apply import apply_experts
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.parallel.strategies import STRATEGIES
from moe_jax.experts.plan import Plan
from tests.comparison import assert_close, assert_each_close
from tests.experts.problems import KINDS, along_experts, draw, route
from tests.meshes import make_mesh

# G, S, D, F, E: eight groups, so that each of eight devices has one.
SHAPE = (8, 6, 4, 6, 8)
COMBINES = ("output", "input", "mix")
REFERENCE = Plan("oracle")


def plan_of(strategy, **fields):
    """A plan with a strategy and the execution that it needs, or `padded`."""
    execution = STRATEGIES[strategy].execution or "padded"
    return Plan(execution, "native" if EXECUTIONS[execution].has_kernels else None, strategy, **fields)


@functools.partial(jax.jit, static_argnames=("kind", "combine"))
def reference(kind, combine, x, assignment, params, cotangent):
    """Output and gradients by the oracle."""

    def apply(x, weight, params):
        return apply_experts(REFERENCE, x, assignment.replace(weight=weight), params, KINDS[kind], combine)[0]

    y, vjp = jax.vjp(apply, x, assignment.weight, params)
    return y, *vjp(cotangent)


@functools.cache
def on_mesh(mesh_name, plan, kind, combine):
    """The plan, compiled for a mesh: a function that gives output, gradients and metrics."""

    @jax.jit
    def run(x, assignment, params, cotangent):
        def apply(x, weight, params):
            return apply_experts(plan, x, assignment.replace(weight=weight), params, KINDS[kind], combine)

        y, vjp, metrics = jax.vjp(apply, x, assignment.weight, params, has_aux=True)
        return y, *vjp(cotangent), metrics

    def divided(*arguments):
        with jax.set_mesh(make_mesh(mesh_name)):
            return run(*arguments)

    return divided


def assert_equal_reference(mesh, plan, router, capacity_factor, kind, combine, favour, valid, seed):
    """Compares, and returns the assignment, output and gradients, and the strategy's metrics."""
    x, kernel, params, cotangent = draw(SHAPE, kind, seed)
    assignment = route(router, capacity_factor, x, kernel, favour, valid)
    cotangent = along_experts(kind, x, assignment, params, cotangent)
    expected = reference(kind, combine, x, assignment, params, cotangent)
    *actual, metrics = on_mesh(mesh, plan, kind, combine)(x, assignment, params, cotangent)
    for one, other, what in zip(actual[:3], expected[:3], ("output", "input", "weight"), strict=True):
        assert_close(one, other, what=f"{plan.strategy} on {mesh}: {what}")
    for name, gradient in expected[3].items():
        assert_each_close(actual[3][name], gradient, what=f"{plan.strategy} on {mesh}: {name}")
    return assignment, actual, metrics
