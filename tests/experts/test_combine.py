"""Weights on output, on input, and as a mix of output and token, against the definitions in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.experts.apply import apply_experts
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.plan import plan_here
from tests.comparison import assert_close, assert_trees_close
from tests.experts.problems import LARGE, draw
from tests.routing.routers import decide

KIND = FFN_KINDS["swiglu"]


def problem(router):
    """Two groups of eight tokens with padding, in which capacity binds."""
    x, kernel, params, cotangent = draw(LARGE, "swiglu")
    assignment = decide(router, x @ kernel, jnp.arange(16).reshape(2, 8) != 3, 0.75)
    assert 0 < assignment.kept.sum() < 16 * (assignment.choices or assignment.num_experts)
    return x, assignment, params, cotangent


def expert(x, params, e):
    gate, up, down = (np.asarray(params[name][e], np.float64) for name in ("gate", "up", "down"))
    gated = x @ gate
    return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down


def by_loops(x, assignment, params, combine):
    """y[t] by the definition of `combine`, assignment by assignment, in float64."""
    y, x64 = np.zeros(x.shape), np.asarray(x, np.float64)
    for g, a in np.argwhere(np.asarray(assignment.kept)):
        token, e, weight = int(assignment.token[g, a]), int(assignment.expert[g, a]), float(assignment.weight[g, a])
        row = x64[g, token]
        if combine == "input":
            y[g, token] += expert(weight * row, params, e)
        else:
            y[g, token] += weight * expert(row, params, e) + (combine == "mix") * (1 - weight) * row
    return y


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("combine", ["output", "input", "mix"])
@pytest.mark.parametrize("router", ["switch", "gshard_all", "expert_choice"])
def test_weights_are_applied_where_they_are_said_to_be(router, combine, execution):
    x, assignment, params, _ = problem(router)
    y = apply_experts(plan_here(execution), x, assignment, params, KIND, combine)[0]
    assert_close(y, by_loops(x, assignment, params, combine))


@pytest.mark.parametrize("combine", ["input", "mix"])
def test_gradients_are_the_oracle_s(combine):
    """Gradients of input, weights and parameters."""
    x, assignment, params, cotangent = problem("gshard_all")

    def gradients(execution):
        def apply(x, weight, params):
            y = apply_experts(plan_here(execution), x, assignment.replace(weight=weight), params, KIND, combine)[0]
            return jnp.sum(y * cotangent)

        return jax.jit(jax.grad(apply, (0, 1, 2)))(x, assignment.weight, params)

    expected = gradients("oracle")
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    for execution in sorted(set(EXECUTIONS) - {"oracle"}):
        assert_trees_close(gradients(execution), expected)


def test_a_numerical_derivative_agrees_with_that_of_a_weight_on_the_input():
    x, assignment, params, cotangent = problem("switch")

    def total(weight):
        y = apply_experts(plan_here("padded"), x, assignment.replace(weight=weight), params, KIND, "input")[0]
        return jnp.sum(y * cotangent)

    gradient = jax.grad(total)(assignment.weight)
    g, a = np.argwhere(np.asarray(assignment.kept))[1]
    step = 1e-4
    ends = []
    for sign in (1, -1):
        moved = assignment.replace(weight=assignment.weight.at[g, a].add(sign * step))
        ends.append((by_loops(x, moved, params, "input") * np.asarray(cotangent, np.float64)).sum())
    np.testing.assert_allclose(gradient[g, a], (ends[0] - ends[1]) / (2 * step), rtol=2e-3)
