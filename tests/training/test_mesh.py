"""A run on any mesh is the run on one device: loss, every metric and gradient, parameters, router state.

The optimizer is momentum with clipping: Adam divides rounding by rounding, and what it makes of it says nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.training.config import MeshConfig
from moe_jax.training.mesh import process_batch, state_shardings
from moe_jax.training.state import place_state
from moe_jax.training.step import make_train_step
from tests.comparison import assert_close, assert_each_close
from tests.meshes import MESHES, make_mesh
from tests.training.tiny_runs import S, random_batch, tiny_config

ROWS, STEPS = 32, 5
COMMON = {
    "data.batch_size": ROWS,
    "model.num_layers": 2,
    "model.moe_layers": (0, 1),
    "model.moe.num_experts": 8,
    "model.moe.router_options": {},
    "model.ffn": "swiglu",
    # Large enough to matter in every gradient.
    "optimizer.clip_norm": 0.1,
}
PROBLEMS = {
    "switch, drops": {"model.moe.router": "switch", "model.moe.k": 1, "model.moe.capacity_factor": 1.0},
    "noisy_top_k, losses of the batch": {"model.moe.router": "vmoe", "model.moe.capacity_factor": 1.0},
    "top_k, dropless": {
        "model.moe.router": "top_k",
        "model.moe.capacity_factor": None,
        "model.moe.execution": "dropless",
        "model.moe.loss_level": "batch",
    },
    "expert_choice": {"model.moe.router": "expert_choice", "model.moe.allow_noncausal_router": True},
    "deepseek, selection bias": {
        "model.moe.router": "deepseek",
        "model.moe.router_options": {"bias_rate": 0.05},
        "model.moe.shared_dim": 4,
        "model.moe.group_size": 2 * S,
        "model.moe.losses": {"balance_loss": 0.5, "z_loss": 0.1},
    },
}
# Of the batch, in how many parts: several only where routers draw nothing, since parts draw anew.
ACCUMULATIONS = (1, 4)


def padded_batch(seed):
    """As `random_batch`, its rows ending in padding of different lengths, one of them all padding."""
    batch = random_batch(seed, ROWS)
    length = np.random.default_rng(seed).integers(S // 2, S + 1, ROWS)
    length[3] = 0
    present = np.arange(S)[None] < length[:, None]
    batch["segment_ids"] = np.where(present, batch["segment_ids"], 0)
    batch["loss_mask"] = batch["loss_mask"] & present
    return batch


def keep_gradients(optimizer):
    """`optimizer`, its state holding the gradients that it was last given."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), optimizer.init(params)

    def update(gradients, state, params):
        updates, inner = optimizer.update(gradients, state[1], params)
        return updates, (gradients, inner)

    return optax.GradientTransformation(init, update)


def configuration(problem, mesh, accumulation):
    config = tiny_config(sets=COMMON | PROBLEMS[problem] | {"accumulation": accumulation})
    return dataclasses.replace(config, mesh=MESHES.get(mesh, MeshConfig()))


def compiled_step(config, mesh):
    """The first state, on the mesh, and the step compiled for it."""
    momentum = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optax.sgd(0.5, momentum=0.9))
    optimizer = keep_gradients(momentum)
    state = place_state(config, optimizer, mesh)
    step = jax.jit(
        make_train_step(config, optimizer, lambda _: jnp.float32(0.5)),
        out_shardings=(state_shardings(state, mesh), jax.NamedSharding(mesh, jax.sharding.PartitionSpec())),
    )
    with jax.set_mesh(mesh):
        return state, step.lower(state, process_batch(padded_batch(0), mesh)).compile()


@functools.cache
def five_steps(problem, mesh_name, accumulation):
    """Metrics of each step, gradients of the last, and the state after it."""
    mesh = make_mesh(mesh_name)
    state, step = compiled_step(configuration(problem, mesh_name, accumulation), mesh)
    history = []
    for i in range(STEPS):
        state, metrics = step(state, process_batch(padded_batch(i), mesh))
        history.append(metrics)
    return state, history


def assert_state_close(actual, expected, what):
    """Experts each on their own scale."""
    for (path, one), (_, other) in zip(
        *(jax.tree_util.tree_leaves_with_path(tree) for tree in (actual, expected)), strict=True
    ):
        name = f"{what}: {jax.tree_util.keystr(path)}"
        compare = assert_each_close if "experts_" in name else assert_close
        compare(one, other, 1e-5, name)


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("mesh", ["one", *MESHES])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_five_steps_are_those_of_one_device(problem, mesh, accumulation):
    if PROBLEMS[problem]["model.moe.router"] == "vmoe" and accumulation > 1:
        accumulation = 1
    state, history = five_steps(problem, mesh, accumulation)
    expected, metrics_expected = five_steps(problem, "one", 1)
    for i, (one, other) in enumerate(zip(history, metrics_expected, strict=True)):
        overflowed = {name: one.pop(name) for name in ("buffers_overflowed",) if name in one and name not in other}
        assert bool(overflowed) == ("dropless" in problem and MESHES.get(mesh, MeshConfig()).expert > 2)
        assert_state_close(one, other, f"step {i}")
    for name in ("params", "opt_state", "router_state"):
        assert_state_close(getattr(state, name), getattr(expected, name), name)
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.router_state)):
        shards = {}
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shards.setdefault(str(shard.index), np.asarray(shard.data)), shard.data)
