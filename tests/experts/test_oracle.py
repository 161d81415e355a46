"""The reference against NumPy loops over assignments."""

import jax.numpy as jnp
import numpy as np

from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.oracle import oracle
from tests.comparison import assert_close
from tests.experts.problems import LARGE, draw
from tests.routing.routers import decide


def test_oracle_is_the_definition():
    """The reference against NumPy loops over assignments, at float64's accuracy."""
    x, kernel, params, _ = draw(LARGE, "swiglu")
    assignment = decide("gshard_all", x @ kernel, jnp.arange(16).reshape(2, 8) != 3, 1.0)
    expected = np.zeros(x.shape)
    x64, (gate, up, down) = np.asarray(x, np.float64), (np.asarray(params[n], np.float64) for n in params)
    assert 0 < assignment.kept.sum() < assignment.kept.size
    for g, a in np.ndindex(*assignment.token.shape):
        token, e = int(assignment.token[g, a]), int(assignment.expert[g, a])
        gated = x64[g, token] @ gate[e]
        hidden = gated / (1 + np.exp(-gated)) * (x64[g, token] @ up[e])
        expected[g, token] += bool(assignment.kept[g, a]) * float(assignment.weight[g, a]) * (hidden @ down[e])
    assert_close(oracle(x, assignment, params, FFN_KINDS["swiglu"]), expected, 1e-6)
