"""Grouped products and their gradients by definition: one expert at a time, in float64.

A rows sorted by expert, E experts, M and N widths.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.experts.kernels.grouped_matmul import grouped_matmul
from tests.comparison import assert_close, assert_each_close

# Rows, and widths in and out: below, at and beyond the vectors, panels and blocks that kernels are made of.
ROWS = 200
WIDTHS = [(1, 1), (5, 33), (48, 17), (600, 40)]


def expected_products(x, w, sizes):
    """Products [A, N] in float64, zeros for rows of no expert."""
    y = np.zeros((len(x), w.shape[2]))
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows] = x[rows].astype(np.float64) @ w[e].astype(np.float64)
        start += size
    return y


def expected_outer(x, y, sizes):
    """Sums of outer products [E, M, N] in float64."""
    w = np.zeros((len(sizes), x.shape[1], y.shape[1]))
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        w[e] = x[rows].astype(np.float64).T @ y[rows].astype(np.float64)
        start += size
    return w


def compiled(*static):
    """Compiles a function whose first argument is a kernel, and those of numbers `static` no arrays.

    `megablox` is not compiled, but its parts are: a CPU interprets it with effects, which no operation may have.
    """

    def decorate(function):
        program = jax.jit(function, static_argnums=static)

        @functools.wraps(function)
        def run(kernel, *arguments):
            if kernel != "megablox":
                return program(kernel, *arguments)
            as_array = functools.partial(jax.tree.map, lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x)
            return function(kernel, *as_array(arguments))

        return run

    return decorate


@compiled(0)
def value_and_gradients(kernel, x, w, sizes, cotangent):
    y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, kernel), x, w)
    return y, *vjp(cotangent)


def assert_equals_definition(kernel, sizes, width, rows=ROWS, seed=0):
    """Compares a kernel with the definition; rows of no expert hold NaN, which must reach no result."""
    rng = np.random.default_rng(seed)
    # Each column of one sign: sums in which terms cancel would leave rounding to compare.
    x, cotangent = ((rng.choice([-1, 1], n) * rng.uniform(0.5, 1.5, (rows, n))).astype(np.float32) for n in width)
    w = rng.normal(size=(len(sizes), *width)).astype(np.float32)
    used = sum(sizes)
    poisoned = x.copy(), cotangent.copy()
    for rows_of in poisoned:
        rows_of[used:] = np.nan
    y, x_gradient, w_gradient = value_and_gradients(kernel, poisoned[0], w, np.asarray(sizes, np.int32), poisoned[1])
    assert_close(y, expected_products(x, w, sizes), what="product")
    assert (np.asarray(y)[used:] == 0).all()
    assert_close(x_gradient, expected_products(cotangent, w.swapaxes(1, 2), sizes), what="gradient of rows")
    assert_each_close(w_gradient, expected_outer(x, cotangent, sizes), what="gradient of matrices")
