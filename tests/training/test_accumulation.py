"""Parts of a batch: the objective of their sums and its gradient, and which sequences are in which part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.training.accumulation import batch_parts, value_and_grad_of_sums
from tests.comparison import assert_close, assert_trees_close
from tests.training.test_mesh import PROBLEMS, count, lines_of_program
from tests.training.tiny_runs import S, tiny_config


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_product_of_means_has_the_gradient_of_the_whole_batch(parts):
    """mean(a) * mean(b) + max(c), of sums that depend on the parameters in ways that do not add up."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    params = {"w": jnp.asarray([0.3, -0.2, 0.5]), "v": jnp.asarray([1.0, 2.0, 0.1])}

    def sums(params, part, rng):
        del rng
        a, b = jnp.matmul(part, params["w"]), jnp.tanh(jnp.matmul(part, params["v"]))
        return {"a": a.sum(), "b": b.sum(), "squares": (part**2 * params["w"][None]).sum(axis=0)}

    def objective(sums):
        return sums["a"] * sums["b"] / 64 + sums["squares"].max(), sums["a"]

    (value, a), gradients = value_and_grad_of_sums(objective, sums, parts)(
        params, x.reshape(parts, -1, 3), jax.random.key(0)
    )
    (expected, a_expected), gradients_expected = jax.value_and_grad(
        lambda params: objective(sums(params, x, None)), has_aux=True
    )(params)
    assert_close(value, expected, 1e-6)
    assert_close(a, a_expected, 1e-6)
    assert_trees_close(gradients, gradients_expected, 1e-6)


def test_parts_hold_whole_groups_and_each_row_once():
    """Groups of two sequences stay together, and the first rows of each quarter, a device's of four, are in part 0."""
    sets = {"data.batch_size": 16, "accumulation": 2, "model.moe.group_size": 2 * S}
    parts = batch_parts({"row": jnp.arange(16)}, tiny_config(sets=sets))["row"]
    assert parts.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]


@pytest.mark.parametrize(
    ("problem", "passes"), [("switch, drops", 1), ("deepseek, selection bias", 1), ("top_k, dropless", 2)]
)
def test_the_first_pass_is_there_only_for_losses_of_the_batch(problem, passes):
    """From the products in the compiled program: a loss that is a product of means of the batch needs them twice."""
    once, in_parts = (
        count(lines_of_program(PROBLEMS[problem] | {"accumulation": parts}, "one"), "dot") for parts in (1, 4)
    )
    assert (in_parts > once) == (passes == 2)
