"""Every router's decisions in every execution, in float32 and in bfloat16, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.experts.executions import EXECUTIONS
from tests.comparison import assert_close, assert_each_close
from tests.experts.problems import FAST, execute
from tests.routing import routers
from tests.routing.routers import ASSIGNING, D, E, G, S, build, route

F = 6


def problem(dtype):
    """Expert parameters and the output's cotangent."""
    rng = np.random.default_rng(3)
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    params = {name: jnp.asarray(rng.normal(size=shape) * shape[1] ** -0.5, dtype) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.normal(size=(G, S, D)), dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", ASSIGNING)
def test_decisions_are_carried_out_as_by_the_oracle(name, dtype, tolerance):
    """As in training, with a capacity where the router takes one: output, and each gradient, per expert."""
    tokens = routers.tokens(dtype=dtype)
    assignment, _ = route(build(name, training=True), tokens)
    params, cotangent = problem(dtype)
    exact = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (tokens.x, params, cotangent)]
    expected = execute("oracle", "swiglu", exact[0], assignment, *exact[1:])
    assert assignment.weight.dtype == jnp.float32
    assert jnp.abs(expected[0]).max() > 0.1
    for execution in FAST:
        actual = execute(execution, "swiglu", tokens.x, assignment, params, cotangent)
        assert actual[0].dtype == dtype
        for one, other, what in zip(actual[:3], expected[:3], ("output", "input", "weight"), strict=True):
            assert_close(one, other, tolerance, f"{execution}: {what}")
        compare = assert_each_close if dtype == jnp.float32 else assert_close
        for part, gradient in expected[3].items():
            compare(actual[3][part], gradient, tolerance, f"{execution}: {part}")


def test_there_are_ways_to_run():
    assert set(FAST) == set(EXECUTIONS) - {"oracle"} >= {"one_hot", "padded", "dropless"}
