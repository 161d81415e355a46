"""Every kernel of grouped products equals products of one expert at a time, in value and in every gradient.

A rows sorted by expert, T tokens, E experts, M and N widths.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from moe_jax.experts.kernels.grouped_matmul import into_experts, out_of_experts
from moe_jax.experts.kernels.kernel import RowLayout
from moe_jax.experts.kernels.tokamax import has_tokamax
from tests.comparison import assert_close, assert_each_close
from tests.experts.kernels.products import (
    ROWS,
    WIDTHS,
    assert_equals_definition,
    compiled,
    expected_outer,
    expected_products,
    value_and_gradients,
)

# `megablox` as a TPU would run it, interpreted; `tokamax`, which need not be installed, by what it has for CPUs.
TESTED = ["native", "blocks", "ragged_dot", "megablox", *(["tokamax"] if has_tokamax() else [])]


@pytest.fixture(autouse=True)
def _as_if_at_home(request, monkeypatch):
    """Makes the CPU run the kernels of other platforms, with NaN wherever a TPU's memory would hold anything."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    kernel = parameters.get("kernel")
    if kernel in ("megablox", "tokamax"):
        monkeypatch.setattr("moe_jax.experts.kernels.choice.available", lambda platform: (kernel,))
    if kernel != "megablox":
        yield
        return
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        yield


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


# An interpreted run takes a tenth of a second: among six groups, empty ones come first, last, inside and side by side.
MOST_EXPERTS = dict.fromkeys(TESTED, 8) | {"megablox": 6}


@pytest.mark.parametrize(("kernel", "experts"), [(k, e) for k in TESTED for e in range(1, MOST_EXPERTS[k] + 1)])
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


@compiled(0, 1)
def through_experts(kernel, choices, x, first, second, token, row, sizes, cotangent):
    """Runs tokens through experts, with two matrices on the way out; returns the result and all gradients."""
    layout = RowLayout(sizes, token, row if choices else None, x.shape[0])

    def run(x, first, second):
        a, b = into_experts(x, first, layout, kernel)
        return out_of_experts(((a, second[0]), (b, second[1])), layout, kernel)

    y, vjp = jax.vjp(run, x, first, second)
    return y, *vjp(cotangent)


@pytest.mark.parametrize("choices", [True, False], ids=["rows of tokens known", "not known"])
@pytest.mark.parametrize("kernel", TESTED)
@settings(max_examples=12)
@given(data=st.data())
def test_tokens_are_read_and_summed_where_they_lie(kernel, choices, data):
    """Compares with products by a matrix of choices in float64, with any number of choices of each token."""
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
