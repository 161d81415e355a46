"""Every kernel of grouped products equals products of one expert at a time, in value and in every gradient.

A rows sorted by expert, T tokens, E experts, M and N widths.
"""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from moe_jax.configuration import ConfigError
from moe_jax.experts.kernels.choice import available, choose_kernel, is_as_fast_as_dense
from moe_jax.experts.kernels.grouped_matmul import grouped_matmul, into_experts, out_of_experts
from moe_jax.experts.kernels.kernel import Groups
from moe_jax.experts.kernels.native import NATIVE
from moe_jax.experts.kernels.tokamax import has_tokamax
from tests.comparison import assert_close, assert_each_close

ROOT = Path(__file__).parents[2]
# Rows, and widths in and out: below, at and beyond the vectors, panels and blocks that kernels are made of.
ROWS = 200
WIDTHS = [(1, 1), (5, 33), (48, 17), (600, 40)]
# `megablox` as a TPU would run it, interpreted; `tokamax`, which need not be installed, by what it has for CPUs.
TESTED = ["native", "blocks", "ragged_dot", "megablox", *(["tokamax"] if has_tokamax() else [])]


@pytest.fixture(autouse=True)
def _as_if_at_home(request, monkeypatch):
    """Others' kernels on the CPU; a TPU's with NaN wherever the TPU's memory would hold anything."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    kernel = parameters.get("kernel")
    if kernel in ("megablox", "tokamax"):
        monkeypatch.setattr("moe_jax.experts.kernels.choice.available", lambda platform: (kernel,))
    if kernel != "megablox":
        yield
        return
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        yield


def expected_products(x, w, sizes):
    """[A, N] in float64, zeros past the last group."""
    y = np.zeros((len(x), w.shape[2]))
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows] = x[rows].astype(np.float64) @ w[e].astype(np.float64)
        start += size
    return y


def expected_outer(x, y, sizes):
    """[E, M, N] in float64."""
    w = np.zeros((len(sizes), x.shape[1], y.shape[1]))
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        w[e] = x[rows].astype(np.float64).T @ y[rows].astype(np.float64)
        start += size
    return w


@functools.partial(jax.jit, static_argnames="kernel")
def value_and_gradients(kernel, x, w, sizes, cotangent):
    y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, kernel), x, w)
    return y, *vjp(cotangent)


def assert_equals_definition(kernel, sizes, width, rows=ROWS, seed=0):
    """With NaN in the rows that are nobody's, which must reach no result."""
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


def draw_sizes(data, experts, rows=ROWS):
    """Sizes with any pattern of empty groups, that end anywhere in a block, and fill all rows or do not."""
    cuts = data.draw(st.lists(st.integers(0, rows), min_size=experts, max_size=experts), "cuts")
    ends = np.sort(np.where(np.asarray(cuts) > rows * 0.9, rows, cuts))
    return np.diff(ends, prepend=0).tolist()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kernel", TESTED)
@settings(max_examples=12)
@given(data=st.data())
def test_drawn_sizes(kernel, width, data):
    assert_equals_definition(kernel, draw_sizes(data, 5), width, seed=data.draw(st.integers(0, 99), "seed"))


@pytest.mark.parametrize("experts", range(1, 9))
@pytest.mark.parametrize("kernel", TESTED)
def test_every_pattern_of_empty_groups(kernel, experts):
    for some in itertools.product([False, True], repeat=experts):
        sizes = [3 + 2 * e if present else 0 for e, present in enumerate(some)]
        assert_equals_definition(kernel, sizes, (5, 33), rows=90)


@pytest.mark.parametrize("kernel", TESTED)
@pytest.mark.parametrize("sizes", [(128, 256, 1), (129, 127, 0), (0, 0, 700), (255, 257, 130), (256, 0, 256)])
def test_sizes_about_those_of_blocks(kernel, sizes):
    assert_equals_definition(kernel, sizes, (40, 530), rows=700)


@pytest.mark.parametrize("kernel", TESTED)
def test_no_rows(kernel):
    y, x_gradient, w_gradient = value_and_gradients(
        kernel,
        np.zeros((0, 3), np.float32),
        np.ones((2, 3, 4), np.float32),
        np.zeros(2, np.int32),
        np.zeros((0, 4), np.float32),
    )
    assert y.shape == (0, 4)
    assert x_gradient.shape == (0, 3)
    assert (w_gradient == 0).all()


@functools.partial(jax.jit, static_argnames=("kernel", "choices"))
def through_experts(kernel, choices, x, first, second, token, row, sizes, cotangent):
    """From tokens to experts and back by two matrices on the way out, with all gradients."""
    groups = Groups(sizes, token, row if choices else None, x.shape[0])

    def run(x, first, second):
        a, b = into_experts(x, first, groups, kernel)
        return out_of_experts(((a, second[0]), (b, second[1])), groups, kernel)

    y, vjp = jax.vjp(run, x, first, second)
    return y, *vjp(cotangent)


@pytest.mark.parametrize("choices", [True, False], ids=["rows of tokens known", "not known"])
@pytest.mark.parametrize("kernel", TESTED)
@settings(max_examples=12)
@given(data=st.data())
def test_tokens_are_read_and_summed_where_they_lie(kernel, choices, data):
    """Against the same by a matrix of choices in float64, with as many choices of each token as may come."""
    experts, tokens, width = 4, 30, (7, 20, 35)
    rng = np.random.default_rng(data.draw(st.integers(0, 999), "seed"))
    asked = rng.random((tokens, experts)) < data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]), "share")
    expert, token = np.nonzero(asked.T)
    rows, most = len(token), tokens * experts
    token = np.concatenate([token, np.full(most - rows, -1)]).astype(np.int32)
    row = np.full((tokens, experts), -1, np.int32)
    row[token[:rows], expert] = np.arange(rows)
    x, cotangent = rng.normal(size=(tokens, width[0])), rng.normal(size=(tokens, width[2]))
    first = [rng.normal(size=(experts, width[0], n)) for n in width[1:]]
    second = [rng.normal(size=(experts, n, width[2])) for n in width[1:]]

    def single(tree):
        return jax.tree.map(lambda v: np.asarray(v, np.float32), tree)

    sizes = np.bincount(expert, minlength=experts).astype(np.int32)
    y, x_gradient, first_gradient, second_gradient = through_experts(
        kernel, choices, *single((x, tuple(first), tuple(second))), token, row, sizes, single(cotangent)
    )
    both = [a @ b for a, b in zip(first, second, strict=True)]
    assert_close(y, sum(np.einsum("te,td,edn->tn", asked, x, m) for m in both))
    assert_close(x_gradient, sum(np.einsum("te,tn,edn->td", asked, cotangent, m) for m in both))
    for i in range(2):
        hidden_gradient = np.einsum("tn,efn->tef", cotangent, second[i]) * asked[..., None]
        assert_each_close(first_gradient[i], np.einsum("tef,td->edf", hidden_gradient, x))
        hidden = np.einsum("td,edf->tef", x, first[i]) * asked[..., None]
        assert_each_close(second_gradient[i], np.einsum("tef,tn->efn", hidden, cotangent))


@pytest.mark.parametrize("kernel", TESTED)
def test_bfloat16_is_rounded_once(kernel):
    """Sums in float32, and types as they came."""
    rng = np.random.default_rng(0)
    x, w, cotangent = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in [(60, 30), (3, 30, 20), (60, 20)])
    sizes = np.asarray([20, 0, 35], np.int32)
    y, x_gradient, w_gradient = value_and_gradients(kernel, x, w, sizes, cotangent)
    assert {y.dtype, x_gradient.dtype, w_gradient.dtype} == {jnp.dtype(jnp.bfloat16)}
    wide = [np.asarray(v, np.float32) for v in (x, w, cotangent)]
    assert_close(y, expected_products(*wide[:2], sizes), 2**-8)
    assert_close(x_gradient, expected_products(wide[2], wide[1].swapaxes(1, 2), sizes), 2**-8)
    assert_each_close(w_gradient, expected_outer(wide[0], wide[2], sizes), 2**-8)


def test_the_cpu_has_its_own_kernel():
    """Built by the installation; without it the fastest of the others runs, unless it is asked for by name."""
    assert available("cpu")[0] == choose_kernel("auto") == "native"


def test_what_a_platform_lacks_is_refused(monkeypatch):
    monkeypatch.setattr("moe_jax.experts.kernels.choice.is_installed", lambda: False)
    assert choose_kernel("auto") == "blocks"
    accepted = "on platform 'cpu' auto, blocks, ragged_dot; it is built when moe_jax is installed, for CPUs"
    with pytest.raises(ConfigError, match=f"^kernel is 'native'; accepted: {accepted}$"):
        choose_kernel("native")


def test_each_platform_has_its_own(monkeypatch):
    assert available("tpu") == ("megablox", "ragged_dot", "blocks")
    for installed, names in ((True, ("ragged_dot", "tokamax", "blocks")), (False, ("ragged_dot", "blocks"))):
        monkeypatch.setattr("moe_jax.experts.kernels.choice.has_tokamax", lambda installed=installed: installed)
        assert available("gpu") == names
    for kernel, why in (("megablox", "it is for TPUs"), ("tokamax", "it is in the extra gpu, for GPUs")):
        accepted = f"on platform 'cpu' auto, native, blocks, ragged_dot; {why}"
        with pytest.raises(ConfigError, match=f"^kernel is '{kernel}'; accepted: {accepted}$"):
            choose_kernel(kernel)


def test_only_a_kernel_that_was_measured_replaces_dense_products():
    assert [is_as_fast_as_dense(platform) for platform in ("cpu", "gpu", "tpu")] == [True, False, False]


NATIVE_PRODUCTS = {
    "product": lambda x, w, groups: NATIVE.product(x, w, groups, False),
    "product_sum": lambda x, w, groups: NATIVE.product_sum((x,), (w,), groups, False),
    "outer": lambda x, w, groups: NATIVE.outer(x, x, groups, False, False),
}


@pytest.mark.parametrize("name", NATIVE_PRODUCTS)
def test_sizes_beyond_the_rows_are_an_error(name):
    with pytest.raises(jax.errors.JaxRuntimeError, match="more rows in groups than there are"):
        jax.block_until_ready(NATIVE_PRODUCTS[name](jnp.ones((4, 2)), jnp.ones((2, 2, 2)), Groups(jnp.asarray([3, 2]))))


@pytest.mark.parametrize("processor", ["avx2", "baseline"])
def test_other_processors(processor):
    """What the library computes for processors that have less than this one may."""
    code = (
        "from tests.experts.test_kernels import WIDTHS, assert_equals_definition\n"
        "for width in WIDTHS: assert_equals_definition('native', (70, 0, 99, 1), width)"
    )
    environment = os.environ | {"MOE_JAX_CPU": processor}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
