"""A run goes on on any mesh: what is restored is what was saved, to the bit, and metrics are those of one device."""

import contextlib

import jax
import pytest

from moe_jax.checkpoints.manager import Checkpoints
from moe_jax.configuration import ConfigError
from moe_jax.training.config import MeshConfig, TrainConfig
from moe_jax.training.loop import train
from moe_jax.training.mesh import make_mesh, state_shardings
from moe_jax.training.optimizer import make_optimizer
from moe_jax.training.state import abstract_state
from moe_jax.training.trained import load_run
from tests.comparison import assert_close, assert_trees_equal
from tests.training.tiny_runs import first_state, lines_of, tiny_values, write_corpus

SETS = {
    "data.batch_size": 8,
    "model.ffn": "swiglu",
    "model.moe.num_experts": 8,
    "model.moe.router": {"kind": "deepseek", "bias_rate": 0.05},
    "eval_every": 8,
    "steps": 16,
}
# A run moves from one to the next.
MESHES = [{"expert": 8}, {}, {"data": 2, "expert": 4}, {"fsdp": 2, "expert": 2, "tensor": 2}]


def configuration(corpus=None, mesh=None, **fields):
    return TrainConfig.from_dict(tiny_values(corpus, SETS) | {"mesh": mesh or {}} | fields)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_checkpoint_is_restored_on_any_mesh(optimizer, tmp_path):
    """8 to 1 to 2x4 to 2x2x2: parameters, moments, router state, key; each array where that mesh has it."""
    config = configuration(optimizer={"name": optimizer, "warmup_steps": 4})
    optimizer = make_optimizer(config.optimizer, config.steps)
    first = state = first_state(config, optimizer, make_mesh(MeshConfig(**MESHES[0])))
    for i, sizes in enumerate(MESHES[1:]):
        with contextlib.closing(Checkpoints(tmp_path / str(i))) as checkpoints:
            checkpoints.save(1, state, {})
        mesh = make_mesh(MeshConfig(**sizes))
        with contextlib.closing(Checkpoints(tmp_path / str(i))) as checkpoints:
            state, _ = checkpoints.restore(abstract_state(config, optimizer, mesh))
        assert_trees_equal(state, first)
        shardings = state_shardings(state, config.model, mesh)
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_what_is_divided_is_stored_once():
    """Experts over the expert axis, and they and all other matrices over fsdp, moments like their parameters."""
    config = configuration(mesh={"fsdp": 2, "expert": 4})
    state = first_state(config, make_optimizer(config.optimizer, config.steps), make_mesh(config.mesh))

    def share(leaf):
        return leaf.addressable_shards[0].data.size / leaf.size

    layer = state.params["layer_0"]
    assert share(layer["moe"]["experts_up"]) == share(layer["moe"]["experts_down"]) == 1 / 8
    assert share(layer["attention"]["query"]["kernel"]) == share(state.params["embedding"]["embedding"]) == 1 / 2
    assert share(layer["moe"]["router"]["kernel"]) == 1
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "experts_up" in jax.tree_util.keystr(path)
    ]
    assert [share(moment) for moment in moments] == [1 / 8, 1 / 8]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
        yield write_corpus(folder / "corpus")


def test_a_run_over_four_meshes_has_the_metrics_of_one(corpus, tmp_path):
    """Stopped after each quarter, and resumed elsewhere; losses to Adam's rounding."""
    train(configuration(corpus), tmp_path / "one", progress=False)

    class StoppedError(Exception):
        pass

    def stopping(step):
        original = Checkpoints.save

        def save(self, at, *arguments):
            original(self, at, *arguments)
            if at == step:
                raise StoppedError

        return save

    for i, sizes in enumerate(MESHES):
        with pytest.MonkeyPatch.context() as patch:
            if i < 3:
                patch.setattr(Checkpoints, "save", stopping(4 * (i + 1)))
            with pytest.raises(StoppedError) if i < 3 else contextlib.nullcontext():
                train(configuration(corpus, sizes), tmp_path / "four", progress=False)
    one, four = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("one", "four"))
    assert [(line["step"], line["split"]) for line in four] == [(line["step"], line["split"]) for line in one]
    for line, expected in zip(four, one, strict=True):
        assert_close(line["loss"], expected["loss"], 1e-4, what=f"step {line['step']}")
    assert int(load_run(tmp_path / "four").state.step) == 16


@pytest.mark.parametrize(
    ("mesh", "fields", "message"),
    [
        ({"expert": 16}, {}, "data.batch_size is 8; accepted: a multiple of 16"),
        ({"expert": 3}, {}, "data.batch_size is 8; accepted: a multiple of 3"),
        ({"tensor": 3}, {}, r"mesh.tensor is 3; accepted: a divisor of the experts' width \(16\)"),
        ({"pipeline": 2}, {}, "mesh.pipeline is not a field; accepted: data, fsdp, expert, tensor"),
        ({"data": 0}, {}, "mesh.data is 0; accepted: an integer of at least 1"),
        ({"data": 4}, {"accumulation": 4}, "accumulation is 4; accepted: a divisor of 2"),
    ],
)
def test_what_cannot_be_divided_is_refused_when_read(mesh, fields, message):
    with pytest.raises(ConfigError, match=message):
        configuration(mesh=mesh, **fields)


@pytest.mark.parametrize(
    ("sets", "mesh", "message"),
    [
        ({"model.moe.num_experts": 6}, {"expert": 4}, r"mesh.expert is 4; accepted: a divisor of .*num_experts \(6\)"),
        (
            {"model.moe.group_size": 64},
            {"data": 4},
            "moe.group_size is 64; accepted: a divisor of 32, the tokens of each",
        ),
    ],
)
def test_what_routing_cannot_divide_is_refused_when_read(sets, mesh, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(tiny_values(None, SETS | sets) | {"mesh": mesh})


def test_what_the_machine_lacks_is_refused_before_anything_is_written(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"mesh is .*; accepted: at most 8 devices"):
        train(configuration(corpus, {"data": 8, "tensor": 2}), tmp_path / "run", progress=False)
    values = tiny_values(corpus, SETS | {"model.moe.execution": "dropless", "model.moe.parallel.strategy": "ragged"})
    with pytest.raises(ConfigError, match=r"^model\.moe\.parallel\.strategy is 'ragged', which platform 'cpu' cannot"):
        train(TrainConfig.from_dict(values | {"mesh": {"expert": 8}}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
