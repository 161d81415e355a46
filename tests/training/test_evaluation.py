"""The validation loss: a mean over tokens, in nats and in bits per byte, the same each time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.training.evaluation import evaluate
from moe_jax.training.optimizer import make_optimizer
from moe_jax.training.state import TrainState
from moe_jax.training.step import apply_model, make_eval_step
from tests.training.tiny_runs import B, S, first_state, random_batch, tiny_config


def test_it_is_a_mean_over_tokens_of_batches_that_differ():
    results = iter(
        [{"loss_sum": 12.0, "targets": 4.0, "z_loss": 1.0}, {"loss_sum": 2.0, "targets": 3.0, "z_loss": 2.0}]
    )
    numbers = evaluate(
        lambda state, batch: jax.tree.map(jnp.float32, next(results)), TrainState(0, {}, {}, {}, None), [{}, {}], 2.5
    )
    assert numbers["loss"] == pytest.approx(14 / 7)
    assert numbers["bits_per_byte"] == pytest.approx(2.0 / math.log(2) / 2.5)
    assert numbers["z_loss"] == 1.5
    assert set(numbers) == {"loss", "bits_per_byte", "z_loss"}


@pytest.fixture(scope="module")
def scored():
    """A sparse model whose router draws, two batches of different sizes, and its state before and after two scores."""
    config = tiny_config()
    state = first_state(config, make_optimizer(config.optimizer, config.steps))
    batches = [random_batch(0), random_batch(1)]
    batches[1]["loss_mask"][:, 5:] = False
    step = jax.jit(make_eval_step(config))
    before = jax.tree.map(jnp.copy, state)
    numbers = [evaluate(step, state, batches, 1.0) for _ in range(2)]
    return config, before, state, batches, numbers


def test_two_evaluations_draw_alike(scored):
    *_, (one, other) = scored
    assert one == other
    assert one["load"]["layer_0"] == pytest.approx(other["load"]["layer_0"])
    assert sum(one["load"]["layer_0"]) == pytest.approx(1.0)


def test_it_leaves_the_state_alone(scored):
    _, before, state, *_ = scored
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        assert jnp.array_equal(one, other)


def test_it_is_numpy_s_mean_of_the_cross_entropy(scored):
    config, _, state, batches, (numbers, _) = scored
    total = count = 0.0
    score = jax.jit(lambda batch: apply_model(config.model, state.params, {}, batch, jax.random.key(0), False)[0])
    for batch in batches:
        logits = score(batch)
        logits = np.asarray(logits, np.float64)
        scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(scores, batch["targets"][..., None], axis=-1)[..., 0]
        total -= chosen[batch["loss_mask"]].sum()
        count += batch["loss_mask"].sum()
    assert count == B * S + B * 5
    assert numbers["loss"] == pytest.approx(total / count, rel=1e-5)
