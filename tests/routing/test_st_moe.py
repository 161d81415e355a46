"""ST-MoE's routing against loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.routing.st_moe import top_n
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.problems import SEEDS, problem
from tests.routing.routers import E, G, S


@given(SEEDS, st.integers(1, 3), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from(["position", "batch"]))
def test_top_n_is_st_moe_s(seed, n, threshold, priority):
    logits, valid = problem(seed)
    rng, capacity = jax.random.key(seed), 3
    assignment = top_n(jnp.asarray(logits), jnp.asarray(valid), capacity, n, threshold, priority, rng)
    draws = np.asarray(jax.random.uniform(rng, (G, S, n)))
    probabilities = references.softmax(logits.astype(np.float64))
    expected = np.zeros(logits.shape)
    for g in range(G):
        taken = np.zeros(E, int)
        order = np.argsort(-probabilities.max(axis=-1)[g], kind="stable") if priority == "batch" else range(S)
        best = np.argsort(-probabilities[g], axis=-1, kind="stable")[:, :n]
        for choice, s in itertools.product(range(n), order):
            e = best[s, choice]
            gates = probabilities[g, s, best[s]]
            gate = gates[choice] / gates.sum() if n > 1 else gates[0]
            if valid[g, s] and (choice == 0 or draws[g, s, choice] * threshold < gate):
                if taken[e] < capacity:
                    expected[g, s, e] = gate
                taken[e] += 1
    assert_close(assignment.combine_weights(), expected, 1e-6)
