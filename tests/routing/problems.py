"""Logits and which tokens are valid, drawn for tests."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from tests.routing.routers import E, G, S

SEEDS = st.integers(0, 999)
CAPACITIES = st.sampled_from([1, 3, S])


def problem(seed, groups=G, tokens=S, experts=E, share_valid=0.8, scale=2.0):
    """Logits and validity, in NumPy."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(groups, tokens, experts)) * scale).astype(np.float32)
    return logits, rng.random((groups, tokens)) < share_valid


@st.composite
def problems(draw, skews=(0.0, 2.0, 20.0)):
    """Logits [G, S, E], some skewed, and which tokens are valid."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    logits = rng.normal(size=(G, S, E)) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits[..., 0] += draw(st.sampled_from(skews))
    valid = rng.uniform(size=(G, S)) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(valid)
