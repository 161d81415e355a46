"""The kernel for CPUs refuses sizes beyond the rows, and computes the same on processors that have less."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from moe_jax.experts.kernels.kernel import RowLayout
from moe_jax.experts.kernels.native import NATIVE

ROOT = Path(__file__).parents[3]
NATIVE_PRODUCTS = {
    "product": lambda x, w, layout: NATIVE.product(x, w, layout, False),
    "product_sum": lambda x, w, layout: NATIVE.product_sum((x,), (w,), layout, False),
    "outer": lambda x, w, layout: NATIVE.outer(x, x, layout, False, False),
}


@pytest.mark.parametrize("name", NATIVE_PRODUCTS)
def test_sizes_beyond_the_rows_are_an_error(name):
    # JAX raises one while it starts the program, the other while it waits for the end.
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="the sum of sizes is larger than the number"):
        jax.block_until_ready(
            NATIVE_PRODUCTS[name](jnp.ones((4, 2)), jnp.ones((2, 2, 2)), RowLayout(jnp.asarray([3, 2])))
        )


@pytest.mark.parametrize("processor", ["avx2", "baseline"])
def test_other_processors(processor):
    """The variants of the library for processors that have less than this one."""
    code = (
        "from tests.experts.kernels.products import WIDTHS, assert_equals_definition\n"
        "for width in WIDTHS: assert_equals_definition('native', (70, 0, 99, 1), width)"
    )
    environment = os.environ | {"MOE_JAX_CPU": processor}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
