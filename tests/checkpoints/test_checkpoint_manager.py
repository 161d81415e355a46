"""A checkpoint gives back what it was given, bit for bit, or is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.checkpoints.manager import Checkpoints
from moe_jax.training.state import TrainState


def state_of(seed):
    """A state with all that one can have: params, an optimizer's moments, a router's memory, a key."""
    draws = iter(jax.random.split(jax.random.key(seed), 8))
    params = {"layer_0": {"up": jax.random.normal(next(draws), (3, 5)), "scale": jnp.full(3, 1e-40, jnp.float32)}}
    optimizer = optax.adam(0.1)
    gradient = jax.tree.map(lambda x: jax.random.normal(next(draws), x.shape), params)
    with jax.numpy_dtype_promotion("standard"):
        _, opt_state = optimizer.update(gradient, optimizer.init(params), params)
    return TrainState(
        step=jnp.int32(7 + seed),
        params=params,
        opt_state=opt_state,
        router_state={"layer_0": {"bias": jax.random.normal(next(draws), (4,)).astype(jnp.bfloat16)}},
        rng=next(draws),
    )


def leaves(state):
    """Bytes, type and place of each array."""
    plain = state.replace(rng=jax.random.key_data(state.rng))
    flat, _ = jax.tree_util.tree_flatten_with_path(plain)
    return {jax.tree_util.keystr(path): (str(x.dtype), np.asarray(x).tobytes()) for path, x in flat}


POSITION = {"data": {"next_index": 12, "nested": {"epoch": None, "names": ["a", "b"]}}, "clock": {"seconds": 0.1 + 0.2}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(directory)
    for step in (3, 6):
        checkpoints.save(step, state_of(step), {**POSITION, "step": step})
    checkpoints.close()
    return directory


def test_the_newest_state_and_position_come_back_to_the_bit(saved):
    checkpoints = Checkpoints(saved)
    state, position = checkpoints.restore(state_of(0))
    assert leaves(state) == leaves(state_of(6))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(6))
    assert jnp.issubdtype(state.rng.dtype, jax.dtypes.prng_key)
    assert position == checkpoints.position() == {**POSITION, "step": 6}
    checkpoints.close()


def test_only_the_newest_stay(saved):
    assert [path.name for path in saved.iterdir()] == ["6"]


def test_what_is_half_written_does_not_count_and_goes(tmp_path):
    (tmp_path / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.save(9, {"x": jnp.ones(3)}, POSITION)
    assert checkpoints.position() == POSITION
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["9"]
