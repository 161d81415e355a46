"""Moving experts between devices changes no number: outputs, gradients, next steps, runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.experts.parallel.balance import device_load
from moe_jax.models.paths import unstack_layers
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import train
from moe_jax.training.mesh import process_batch, state_shardings
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.rebalance import rebalance
from moe_jax.training.state import abstract_state
from moe_jax.training.step import apply_model, make_train_step
from moe_jax.training.trained import load_run
from tests.comparison import assert_close, assert_trees_close
from tests.meshes import MESHES, make_mesh
from tests.training.tiny_runs import first_state, lines_of, random_batch, tiny_config, tiny_values, write_corpus

SETS = {
    "data.batch_size": 8,
    "model.num_layers": 2,
    "model.attention.heads": 2,
    "model.moe_layers": (0, 1),
    "model.ffn": "swiglu",
    "model.moe.num_experts": 16,
    "model.moe.router": {"kind": "deepseek", "bias_rate": 0.05},
    "model.moe.parallel.rebalance_every": 1,
}
CASES = {
    "deepseek": {},
    "scanned": {"model.scan_layers": True, "model.remat": True},
    "no state of its own": {"model.moe.router": "top_k"},
    "slots": {
        "model.moe.router": "soft_moe",
        "model.moe.k": 1,
        "model.moe.capacity_factor": None,
        "model.moe.group_size": 16,
        "model.moe.allow_noncausal_router": True,
    },
}
SKEWED = {f"layer_{i}": np.r_[[8.0] * (2 + i), [1.0] * (14 - i)] / 32 for i in range(2)}


def logical(tree, state, config):
    """Weights of layers one by one, experts in the order of their numbers; `tree` is like the parameters."""
    # In NumPy: of each slice of a divided array jax would make a program.
    tree, placement = jax.tree.map(np.asarray, (tree, state.router_state))
    if config.model.scan_layers:
        tree, placement = unstack_layers(tree, config.model), unstack_layers(placement, config.model)

    def ordered(path, x):
        return x[placement[path[0].key]["moe"]["placement"]] if path[-1].key.startswith("experts_") else x

    return jax.tree_util.tree_map_with_path(ordered, tree)


def moments(state):
    return next(part for part in state.opt_state[1] if hasattr(part, "mu"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mesh_name", ["8 expert", "2x2x2 fsdp-expert-tensor"])
def test_moved_experts_compute_what_they_did(case, mesh_name):
    mesh = make_mesh(mesh_name)
    config = dataclasses.replace(tiny_config(sets=SETS | CASES[case]), mesh=MESHES[mesh_name])
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = first_state(config, optimizer, mesh)
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = state_shardings(state, config.model, mesh)
    step = jax.jit(
        make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps)),
        out_shardings=(shardings, whole),
    )

    def loss(params, state, batch):
        logits, _ = apply_model(config.model, params, state.router_state, batch, jax.random.key(1), False)
        return (logits**2).mean(), logits

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=shardings)
    batches = [process_batch(random_batch(i, 8), mesh) for i in range(4)]
    with jax.set_mesh(mesh):
        for batch in batches[:2]:
            state, _ = step(state, batch)
        still = state
        moved = rebalance(copy(state), SKEWED, config, mesh)
        for leaf, sharding in zip(jax.tree.leaves(moved), jax.tree.leaves(shardings), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        # Moved, to the bit, and not where they were.
        for tree in (lambda s: s.params, lambda s: moments(s).mu, lambda s: moments(s).nu):
            jax.tree.map(
                np.testing.assert_array_equal, logical(tree(moved), moved, config), logical(tree(still), still, config)
            )
        places = jax.tree.map(np.asarray, moved.router_state)
        places = unstack_layers(places, config.model) if config.model.scan_layers else places
        for layer, load in SKEWED.items():
            place = places[layer]["moe"]["placement"]
            before, after = (device_load(load, config.mesh.expert, p).max() for p in (np.arange(16), place))
            assert after < before
        ((_, expected), gradients_expected), ((_, logits), gradients) = (
            gradient(s.params, s, batches[2]) for s in (still, moved)
        )
        assert_close(logits, expected, 1e-5)
        assert_trees_close(logical(gradients, moved, config), logical(gradients_expected, still, config), 1e-5)
        for batch in batches[2:]:
            (still, metrics_expected), (moved, metrics) = step(still, batch), step(moved, batch)
            assert_trees_close(metrics, metrics_expected, 1e-5)
    assert_trees_close(logical(moved.params, moved, config), logical(still.params, still, config), 1e-4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rebalance")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
        yield write_corpus(folder / "corpus")


def test_a_run_that_moves_experts_is_one_that_does_not(corpus, tmp_path):
    def config(every, mesh):
        values = tiny_values(corpus, SETS | {"model.moe.parallel.rebalance_every": every, "steps": 8})
        return TrainConfig.from_dict(values | {"mesh": mesh})

    train(config(None, {}), tmp_path / "still", progress=False)
    train(config(2, {"expert": 8}), tmp_path / "moved", progress=False)
    still, moved = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("still", "moved"))
    for line, expected in zip(moved, still, strict=True):
        assert_close(line["loss"], expected["loss"], 1e-4, what=f"step {line['step']}")
    one, other = (load_run(tmp_path / name) for name in ("still", "moved"))
    placement = np.asarray(other.state.router_state["layer_0"]["moe"]["placement"])
    assert (placement != np.arange(16)).any()
    batch = jax.tree.map(jnp.asarray, random_batch())

    def logits_of(run):
        def apply(params, router_state):
            return apply_model(run.config.model, params, router_state, batch, jax.random.key(0), False)[0]

        return jax.jit(apply)(run.state.params, run.state.router_state)

    # Adam divides rounding by rounding.
    assert_close(logits_of(other), logits_of(one), 1e-3)


@pytest.mark.parametrize("mesh_name", ["8 expert", "2x2x2 fsdp-expert-tensor"])
def test_a_placement_needs_no_gathering_of_tokens(mesh_name):
    mesh, counts = make_mesh(mesh_name), []
    for every in (None, 1):
        sets = SETS | {"model.moe.parallel.rebalance_every": every}
        config = dataclasses.replace(tiny_config(sets=sets), mesh=MESHES[mesh_name])
        optimizer = make_optimizer(config.optimizer, config.steps)
        state = abstract_state(config, optimizer, mesh)
        step = make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps))
        whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
        with jax.set_mesh(mesh):
            program = jax.jit(step, out_shardings=(state_shardings(state, config.model, mesh), whole))
            text = program.lower(state, process_batch(random_batch(0, 8), mesh)).compile().as_text()
        counts.append([text.count(f" {op}(") for op in ("all-gather", "all-to-all", "all-reduce")])
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"model.moe.parallel.rebalance_every": 0}, r"rebalance_every is 0; accepted: an integer of at least 1"),
        ({"optimizer.name": "adafactor"}, r"rebalance_every is 1; accepted: None, with optimizer\.name='adafactor'"),
        ({"model.moe_layers": ()}, r"rebalance_every is 1; accepted: None, without moe_layers"),
    ],
)
def test_what_cannot_move_is_refused_when_read(sets, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(sets=SETS | sets)
