"""Runs that take parameters from another run, and runs that it teaches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.configuration import ConfigError, to_dict
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.results.rows import final_loss
from moe_jax.study.sweep import run_directory, run_sweep
from moe_jax.training.config import MeshConfig, StartConfig
from moe_jax.training.loop import train
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.step import answer_scores, make_train_step
from moe_jax.training.trained import load_run
from tests.comparison import assert_close, assert_trees_close
from tests.training.tiny_runs import PAIRED, first_state, lines_of, random_batch, tiny_config, write_corpus

SHORT = {
    "steps": 6,
    "eval_every": 3,
    "checkpoint_every": 6,
    "model.num_layers": 2,
    "model.moe_layers": (1,),
    # No draws, which scanned layers have others of.
    "model.moe.router": {"kind": "gshard", "second_policy": "all"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sparse run, and its corpus."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = tiny_config(write_corpus(folder / "text"), SHORT)
    train(config, folder / "teacher", progress=False)
    return config, folder


def test_all_parameters_of_another_run(trained, tmp_path):
    """The first validation loss of the one is the last of the other; scanned layers take those of plain ones."""
    config, folder = trained
    for scanned in (False, True):
        values = to_dict(config) | {"seed": 7, "start": {"run": str(folder / "teacher")}}
        start = type(config).from_dict(values | {"model": values["model"] | {"scan_layers": scanned}})
        curve = train(start, tmp_path / f"tuned-{scanned}", progress=False).curve
        last = [line for line in lines_of(folder / "teacher" / "metrics.jsonl") if line["split"] == "validation"][-1]
        assert curve[0]["validation_loss"] == pytest.approx(last["loss"], rel=1e-6)


@pytest.mark.parametrize("moved", [False, True], ids=["selection bias", "and experts that moved"])
def test_what_routers_remember_comes_along(moved, tmp_path):
    """The bias, which decides the experts; and each expert's own parameters, wherever another mesh had put them."""
    sets = SHORT | {"model.moe.router": {"kind": "deepseek", "bias_rate": 0.03}, "steps": 7, "eval_every": 7, "seed": 5}
    if moved:
        sets |= {"mesh": {"expert": 2}, "model.moe.parallel.rebalance_every": 2, "checkpoint_every": 7}
    config = tiny_config(write_corpus(tmp_path / "text"), sets)
    last = train(config, tmp_path / "first", progress=False).curve[-1]
    before = load_run(tmp_path / "first").state.router_state["layer_1"]["moe"]
    assert np.abs(before["router"]["bias"]).max() > 0.03
    if moved:
        assert before["placement"].tolist() != sorted(before["placement"].tolist())
    plain = dataclasses.replace(config.model, moe=dataclasses.replace(config.model.moe, parallel=ParallelConfig()))
    start = StartConfig(str(tmp_path / "first"))
    for scanned in (False, True):
        model = dataclasses.replace(plain, scan_layers=scanned)
        second = dataclasses.replace(config, seed=8, start=start, mesh=MeshConfig(), model=model)
        first = train(second, tmp_path / f"second-{scanned}", progress=False).curve[0]
        assert first["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-6)
        assert first["load"]["layer_1"] == pytest.approx(last["load"]["layer_1"])


def test_a_dense_student_takes_what_is_outside_mixtures(trained, tmp_path):
    config, folder = trained
    values = to_dict(config) | {
        "start": {"run": "teacher", "parts": "outside_mixtures"},
        "optimizer": {"learning_rate": 1e-12, "warmup_steps": 4},
        "model": to_dict(config.model) | {"moe_layers": (), "moe": None},
    }
    student = type(config).from_dict(values)
    train(student, folder / "student", progress=False)
    ours, theirs = (load_run(folder / name).state.params for name in ("student", "teacher"))
    for name in ("embedding", "final_norm", "head", "layer_0"):
        assert_trees_close(ours[name], theirs[name], 1e-6)
    assert_trees_close(ours["layer_1"]["attention"], theirs["layer_1"]["attention"], 1e-6)
    drawn = first_state(student, make_optimizer(student.optimizer, student.steps)).params
    assert_trees_close(ours["layer_1"]["feed_forward"], drawn["layer_1"]["feed_forward"], 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": {"run": "nothing"}}, "workdir is .*nothing.* which has no run.json"),
        ({"distillation": {"run": "nothing"}}, "workdir is .*nothing.* which has no run.json"),
        (
            {"start": {"run": "teacher"}, "model": {"ffn_dim": 24}},
            r"start.run is 'teacher'; accepted: a run with a parameter \['layer_0'\]\['feed_forward'\]\['down'\] of",
        ),
        (
            {"distillation": {"run": "teacher", "share": 0.0}},
            "distillation.share is 0.0; accepted: a number above 0 and",
        ),
        (
            {"distillation": {"run": "teacher"}, "model": {"loss_chunk": 4}},
            "model.loss_chunk is 4; accepted: None with distillation",
        ),
        (
            {"distillation": {"run": "teacher"}, "data": {"tokenizer": "bpe:300"}, "model": {"vocab_size": 300}},
            "distillation.run is 'teacher'; accepted: a run with model.vocab_size=300",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(trained, changes, message):
    config, folder = trained
    values = to_dict(config)
    values |= {k: values[k] | v if k in ("model", "data") else v for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message):
        train(type(config).from_dict(values), folder / "refused", progress=False)
    assert not (folder / "refused").exists()


def test_one_step_is_that_of_a_mean_of_both_cross_entropies(trained):
    """Against the losses written out, with the teacher's own logits."""
    config, folder = trained
    teacher = load_run(folder / "teacher")
    share = 0.4
    values = to_dict(config) | {
        "distillation": {"run": "teacher", "share": share},
        "model": to_dict(config.model) | {"moe_layers": (), "moe": None},
    }
    student = type(config).from_dict(values)
    optimizer, schedule = optax.sgd(1.0), make_schedule(student.optimizer, student.steps)
    state, batch = first_state(student, optimizer), random_batch()
    batch["loss_mask"][:, 5:9] = False
    step = jax.jit(make_train_step(student, optimizer, schedule, teacher.config.model))
    after, metrics = step(state, batch, teacher.state.params, teacher.state.router_state)
    texts = [jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids")]
    told = jax.jit(Decoder(teacher.config.model).apply)(
        {"params": teacher.state.params}, *texts, rngs={"routing": jax.random.key(0)}
    )
    mask = batch["loss_mask"]

    @jax.jit
    def expected(params):
        log_probabilities = jax.nn.log_softmax(Decoder(student.model, True).apply({"params": params}, *texts))
        hard = -jnp.take_along_axis(log_probabilities, batch["targets"][..., None], axis=-1)[..., 0]
        soft = -jnp.sum(jax.nn.softmax(told) * log_probabilities, axis=-1)
        return tuple(jnp.sum(jnp.where(mask, x, 0.0)) / float(mask.sum()) for x in (hard, soft))

    hard, soft = expected(state.params)
    assert_close(metrics["loss"], hard, 1e-5)
    assert_close(metrics["distillation_loss"], soft, 1e-5)
    assert_close(metrics["total_loss"], (1 - share) * hard + share * soft, 1e-5)
    gradient = jax.jit(jax.grad(lambda p: (1 - share) * expected(p)[0] + share * expected(p)[1]))(state.params)
    assert_trees_close(jax.tree.map(jnp.subtract, state.params, after.params), gradient, 2e-5)


def test_a_student_on_a_mesh_learns_from_its_teacher_as_on_one_device(trained, tmp_path):
    config, folder = trained
    values = to_dict(config) | {"steps": 5, "distillation": {"run": str(folder / "teacher")}}
    one, other = (
        train(type(config).from_dict(values | {"mesh": mesh}), tmp_path / name, progress=False).curve[-1]
        for name, mesh in (("one", {}), ("mesh", {"data": 2, "expert": 2}))
    )
    assert_close(other["validation_loss"], one["validation_loss"])


def test_a_sweep_trains_the_teacher_before_its_students(trained, tmp_path):
    """Beside one another, with one compilation for students of one kind."""
    config, _ = trained
    teacher = dataclasses.replace(config, name="teacher")
    values = to_dict(config) | {
        "name": "student",
        "distillation": {"run": run_directory(teacher, tmp_path).name},
    }
    rows = run_sweep(
        [teacher, type(config).from_dict(values)], tmp_path / "results.jsonl", tmp_path, lambda c, d: train(c, d, False)
    )
    assert [row["name"] for row in rows] == ["teacher", "student"]
    assert final_loss(rows[1]) > 0
    assert "scores" not in rows[0]


def test_scores_of_answers():
    logits = jax.nn.one_hot(jnp.asarray([[1, 2, 3], [1, 2, 0], [0, 0, 0]]), 5)
    targets = jnp.asarray([[1, 2, 3], [1, 2, 3], [0, 1, 4]], jnp.int32)
    mask = jnp.asarray([[True, True, True], [True, True, True], [True, False, False]])
    scores = answer_scores(logits, targets, mask)
    assert_close(scores["exact_match"], 2 / 3)
    assert_close(scores["token_accuracy"], 6 / 7)


def test_a_model_is_tuned_to_answer(tmp_path):
    """Pre-trained on spans, then on pairs, whose answers it learns by heart."""
    corpus = write_corpus(tmp_path / "text")
    sets = SHORT | PAIRED | {"model.moe.router": "switch", "model.moe.k": 1}
    sets |= {"model.num_layers": 1, "model.moe_layers": (0,)}
    pretrained = tiny_config(corpus, sets)
    train(pretrained, tmp_path / "pretrained", progress=False)
    pairs = [{"inputs": f"{word}{i}", "targets": f"{i % 3}"} for word in "abcdefghijkl" for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    values = to_dict(pretrained) | {
        "steps": 120,
        "eval_every": 60,
        "start": {"run": "pretrained"},
        "data": to_dict(pretrained.data)
        | {
            "task": {"kind": "text_to_text", "target_length": 8, "sentinels": 3},
            "corpus": f"json_lines:{tmp_path}/pairs.jsonl",
            "batch_size": 2,
        }
        | {"validation_fraction": 0.3},
    }
    result = train(type(pretrained).from_dict(values), tmp_path / "tuned", progress=False)
    first, last = result.curve[0]["scores"], result.curve[-1]["scores"]
    assert set(first) == {"exact_match", "token_accuracy"}
    assert last["token_accuracy"] > max(first["token_accuracy"], 0.6)
    assert not set(first) & set(result.curve[-1]["routing"])
    np.testing.assert_array_less(result.curve[-1]["validation_loss"], result.curve[0]["validation_loss"])
