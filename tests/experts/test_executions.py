"""Every execution equals the reference under every router, in value and in every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.oracle import oracle
from tests.comparison import assert_close
from tests.experts.problems import FAST, KINDS, LARGE, SMALL, assert_equal_oracle, draw, execute
from tests.routing.routers import DECISIONS, decide

SIZES = [(3, "groups"), (9, "tokens"), (6, "model dim"), (6, "expert dim")]
# Shape, capacity factor, network of an expert.
CASES = [(SMALL, None, "swiglu"), (LARGE, 1.0, "geglu")]


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


@pytest.mark.parametrize("execution", FAST)
@pytest.mark.parametrize("router", ["gshard_all", "expert_choice"])
def test_bfloat16_experts_stay_near_the_oracle(router, execution):
    """In bfloat16 the output has that type and float32's value to its precision, and strict promotion holds."""
    x, kernel, params, cotangent = draw(LARGE, "swiglu")
    half = {name: w.astype(jnp.bfloat16) for name, w in params.items()}
    assignment = decide(router, x @ kernel, jnp.ones((2, 8), bool), 1.0)

    y, *gradients = execute(
        execution, "swiglu", x.astype(jnp.bfloat16), assignment, half, cotangent.astype(jnp.bfloat16)
    )
    assert y.dtype == gradients[0].dtype == jnp.bfloat16
    assert gradients[1].dtype == jnp.float32
    assert_close(y, oracle(x, assignment, params, FFN_KINDS["swiglu"]), 3e-2)
