"""A run on any mesh is the run on one device: loss, every metric and gradient, parameters, router state.

The optimizer is momentum with clipping: Adam divides rounding by rounding, and what it makes of it says nothing.
"""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.routing import ROUTERS
from moe_jax.training.config import MeshConfig
from moe_jax.training.mesh import process_batch, state_shardings
from moe_jax.training.state import abstract_state, place_state
from moe_jax.training.step import make_train_step
from tests.comparison import assert_close, assert_each_close
from tests.meshes import MESHES, make_mesh
from tests.routing.routers import K
from tests.training.tiny_runs import PAIRED, S, V, first_state, random_batch, random_pairs, tiny_config

ROWS, STEPS = 32, 5
COMMON = {
    "data.batch_size": ROWS,
    "model.num_layers": 1,
    "model.attention.heads": 2,
    "model.moe_layers": (0,),
    "model.moe.num_experts": 8,
    "model.moe.router": "gshard",
    "model.ffn": "swiglu",
    # Large enough to matter in every gradient.
    "optimizer.clip_norm": 0.1,
}
SWITCH = {"model.moe.router": "switch", "model.moe.k": 1, "model.moe.capacity_factor": 1.0}
PROBLEMS = {
    "switch, drops": SWITCH,
    "two layers": SWITCH | {"model.num_layers": 2, "model.moe_layers": (0, 1)},
    "vmoe, drawn": {"model.moe.router": "vmoe", "model.moe.capacity_factor": 1.0},
    "top_k, dropless": {
        "model.moe.router": "top_k",
        "model.moe.capacity_factor": None,
        "model.moe.execution": "dropless",
        "model.moe.loss_level": "batch",
    },
    "hierarchical, losses of the batch": {
        "model.moe.router": {"kind": "hierarchical", "groups": 4, "outer": "top_k", "inner": "switch"},
    },
    "expert_choice": {"model.moe.router": "expert_choice", "model.moe.allow_noncausal_router": True},
    "deepseek, selection bias": {
        "model.moe.router": {"kind": "deepseek", "bias_rate": 0.05},
        "model.moe.shared_dim": 4,
        "model.moe.group_size": 2 * S,
        "data.batch_size": 2 * ROWS,
        "model.moe.losses": {"balance_loss": 0.5, "z_loss": 0.1},
    },
    "encoder and decoder": PAIRED | SWITCH,
}
# A program takes long to compile. Whole batches: each problem on every mesh. Batches in parts: each problem on one
# device, one on every mesh, and the two most unlike it on the mesh of most kinds of axes. Where a router draws, parts
# draw anew, and there is nothing to compare.
IN_PARTS = [(problem, "one") for problem in PROBLEMS if "drawn" not in problem]
IN_PARTS += [("deepseek, selection bias", mesh) for mesh in MESHES]
IN_PARTS += [(problem, "2x2x2 fsdp-expert-tensor") for problem in ("top_k, dropless", "expert_choice")]
CASES = [(problem, mesh, 1) for problem in PROBLEMS for mesh in MESHES] + [(*case, 4) for case in IN_PARTS]


def padded_batch(seed, rows):
    """As `random_batch`, its rows ending in padding of different lengths, one of them all padding.

    No token comes twice in a row: a document that starts with one twice has two equal values there, of which expert
    choice may take either.
    """
    batch = random_batch(seed, rows)
    rng = np.random.default_rng(seed)
    batch["tokens"] = rng.permuted(np.tile(np.arange(V, dtype=np.int32), (rows, 1)), axis=1)[:, :S]
    length = rng.integers(S // 2, S + 1, rows)
    length[3] = 0
    present = np.arange(S)[None] < length[:, None]
    batch["segment_ids"] = np.where(present, batch["segment_ids"], 0)
    batch["loss_mask"] = batch["loss_mask"] & present
    return batch


def batch_of(config, seed):
    """What `config` trains on, with padding."""
    make = random_pairs if config.data.task_name == "span_corruption" else padded_batch
    return make(seed, config.data.batch_size)


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


def sharpened(path, leaf):
    return 10.0 * leaf if "router" in jax.tree_util.keystr(path) else leaf


CLIPPED = optax.chain(optax.clip_by_global_norm(COMMON["optimizer.clip_norm"]), optax.sgd(0.1, momentum=0.9))
OPTIMIZER = keep_gradients(CLIPPED)


def compile_step(config, mesh, state):
    """The training step, compiled for a mesh; of `state` it takes the shapes."""
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(
        make_train_step(config, OPTIMIZER, lambda _: jnp.float32(0.1)),
        out_shardings=(state_shardings(state, config.model, mesh), whole),
    )
    with jax.set_mesh(mesh):
        return step.lower(state, process_batch(batch_of(config, 0), mesh)).compile()


@functools.cache
def five_steps(problem, mesh_name, accumulation):
    """Metrics of each step, gradients of the last, and the state after it."""
    mesh = make_mesh(mesh_name)
    config = configuration(problem, mesh_name, accumulation)
    state = first_state(config, OPTIMIZER)
    # Away from even load, where the losses on it are little but rounding.
    state = state.replace(params=jax.tree_util.tree_map_with_path(sharpened, state.params))
    state = jax.device_put(state, state_shardings(state, config.model, mesh))
    step = compile_step(config, mesh, state)
    history = []
    for i in range(STEPS):
        state, metrics = step(state, process_batch(batch_of(config, i), mesh))
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


@pytest.mark.parametrize(("problem", "mesh", "accumulation"), CASES)
def test_five_steps_are_those_of_one_device(problem, mesh, accumulation):
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


@pytest.mark.parametrize("mesh_name", MESHES)
def test_a_mesh_draws_the_state_that_one_device_draws(mesh_name):
    config, mesh = configuration("deepseek, selection bias", mesh_name, 1), make_mesh(mesh_name)
    state, expected = place_state(config, OPTIMIZER, mesh), first_state(config, OPTIMIZER)
    assert_state_close(state.params, expected.params, "params")
    chex.assert_trees_all_equal(
        *((s.step, s.opt_state, s.router_state, jax.random.key_data(s.rng)) for s in (state, expected))
    )
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, config.model, mesh)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def lines_of_program(sets, mesh_name):
    """The optimised program of a training step, line by line."""
    config = dataclasses.replace(tiny_config(sets=COMMON | sets), mesh=MESHES.get(mesh_name, MeshConfig()))
    mesh = make_mesh(mesh_name)
    return compile_step(config, mesh, abstract_state(config, OPTIMIZER, mesh)).as_text().splitlines()


def count(lines, operation):
    return sum(re.search(rf" {operation}(-start)?\(", line) is not None for line in lines)


@pytest.mark.parametrize("mesh", ["8 expert", "2x4 data-expert", "2x2x2 data-expert-tensor"])
def test_a_layer_exchanges_twice_forward_and_twice_backward_and_gathers_nothing(mesh):
    """Not one array of the whole step, experts' weights or other, is gathered."""
    one, two = (
        lines_of_program(
            SWITCH
            | {
                "model.num_layers": layers,
                "model.moe_layers": tuple(range(layers)),
                "model.moe.parallel": {"strategy": "all_to_all"},
            },
            mesh,
        )
        for layers in (1, 2)
    )
    assert count(one, "all-to-all") == 4
    assert count(two, "all-to-all") == 8
    assert count(two, "all-gather") == 0


def test_experts_are_gathered_along_fsdp_alone():
    """Their three matrices, once each for both passes or once for each."""
    gathers = [
        line
        for line in lines_of_program(SWITCH, "2x2x2 fsdp-expert-tensor")
        if re.search(r" all-gather(-start)?\(", line) and "moe" in line and "router" not in line
    ]
    assert len(gathers) in (3, 6)


@pytest.mark.parametrize("router", ROUTERS)
def test_a_router_gathers_no_tokens(router):
    """Devices exchange sums alone; `quantile` its scores too, because a quantile is one of all."""
    sets = {
        "model.causal": True,
        "model.moe.router": {"kind": router} | ({"groups": 2} if router == "hierarchical" else {}),
        "model.moe.k": K[router] if router != "dense_mixture" else 8,
        "model.moe.capacity_factor": 1.0 if ROUTERS[router].drops else None,
        "model.moe.group_size": S,
        "model.moe.allow_noncausal_router": True,
    }
    lines = lines_of_program(sets, "8 data")
    exchanges = count(lines, "all-gather") + count(lines, "all-to-all")
    assert (exchanges > 0) == (router == "quantile")
