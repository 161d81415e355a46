"""The benchmark of a training step compares models of one size, and says what it cannot time."""

import json

import numpy as np
import pytest

from experiments.benchmarks import hugging_face, train_step
from experiments.benchmarks.layer_ways import CannotRunError
from experiments.benchmarks.timing import BenchmarkError
from experiments.benchmarks.train_step import MODELS, draw_batch, first_step_row, main, make_config
from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters

TINY = MODELS["tiny"]


def without_torch(monkeypatch):
    def make_model(config, batch):
        raise CannotRunError("torch is not installed")

    monkeypatch.setattr(hugging_face, "make_model", make_model)


def test_rows_of_both_projects_are_of_as_many_parameters(capsys, tmp_path):
    output = tmp_path / "rows.jsonl"
    assert main(["--model", "tiny", "--repeats", "2", "--json", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert output.read_text() == printed
    header, *rows = map(json.loads, printed.splitlines())
    assert header["model"] == TINY._asdict()
    rows = {row["name"]: row for row in rows}
    assert list(rows) == ["sparse", "dense", *hugging_face.IMPLEMENTATIONS]
    # Of four experts, three matrices 16 x 8 each, a token leaves two.
    assert rows["sparse"]["parameters"] - rows["sparse"]["active"] == 2 * 3 * 16 * 8
    for name in hugging_face.IMPLEMENTATIONS:
        assert rows[name]["parameters"] == rows["sparse"]["parameters"]
        assert rows[name]["active"] == rows["sparse"]["active"]
        assert rows[name]["adamw"] in ("fused", "foreach")
    # The dense model has no router, 16 x 4.
    assert rows["dense"]["parameters"] == rows["sparse"]["active"] - 16 * 4
    for row in rows.values():
        assert row["tokens_per_second"] == pytest.approx(16 / (row["ms"] / 1000))
    assert rows["dense"]["to_dense"] == 1.0
    assert 1.0 in [rows[name]["to_hf"] for name in hugging_face.IMPLEMENTATIONS]


def test_a_step_of_transformers_trains_with_both_ways():
    config = make_config("sparse", TINY)
    model = hugging_face.make_model(config.model, draw_batch(config))
    for step in model.steps.values():
        step()
    assert model.parameters == count_parameters(config.model).total


def test_models_of_different_sizes_are_refused(monkeypatch, capsys):
    without_torch(monkeypatch)
    theirs = hugging_face.TorchModel({}, 12, 2, "fused")
    monkeypatch.setattr(hugging_face, "make_model", lambda config, batch: theirs)
    assert main(["--model", "tiny"]) == 1
    error = capsys.readouterr().err
    assert "train_step: transformers' model has {'parameters': 12, 'active': 10}, but ours has {'parameters': " in error


@pytest.mark.parametrize("shape", MODELS.values(), ids=MODELS)
def test_the_dense_twin_has_as_many_active_flops_but_for_the_router(shape):
    sparse, dense = (flops_per_token(make_config(name, shape).model, shape.length) for name in ("sparse", "dense"))
    assert sparse.ffn == dense.ffn
    assert sparse.mixtures_executed == 0
    assert sparse.forward - sparse.router == dense.forward


def test_the_batch_is_what_a_decoder_reads():
    config = make_config("sparse", TINY)
    batch = draw_batch(config)
    assert {value.shape for value in batch.values()} == {(TINY.batch, TINY.length)}
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert batch["loss_mask"].all()


def test_the_table_has_a_profile_and_a_first_step(monkeypatch, capsys):
    without_torch(monkeypatch)
    parts = {"import": 3.0, "build and compile": 4.0, "step": 0.5}
    first = {"row": "first step", "model": "switch-16", "seconds": 7.5, "parts": parts}
    monkeypatch.setattr(train_step, "first_step_row", lambda: first)
    assert main(["--model", "tiny", "--repeats", "1", "--profile", "sparse", "--first-step"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert [line[:3] for line in lines if line[:1] == ["dense"]] == [["dense", "11,440", "11,440"]]
    assert ["hf-eager", "-", "torch", "is", "not", "installed"] in lines
    assert "first step of switch-16 in a fresh process: 7.5 s (import 3.0, build and compile 4.0, step 0.5)" in printed
    assert "sparse: milliseconds of a step by part of the model" in printed
    assert any(line[:2] == ["moe:", "other"] for line in lines)


def test_the_first_step_is_that_of_a_fresh_process():
    small = ["model.model_dim=8", "model.ffn_dim=8", "model.num_layers=2", "model.moe_layers=(1,)", "data.batch_size=1"]
    small += ["data.sequence_length=8", "model.moe.group_size=8", "model.moe.num_experts=2"]
    row = first_step_row(small)
    assert list(row["parts"]) == ["import", "build and compile", "step"]
    assert min(row["parts"].values()) > 0
    assert sum(row["parts"].values()) == pytest.approx(row["seconds"])


def test_a_first_step_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(train_step, "FIRST_STEP", "raise ValueError('no device')")
    with pytest.raises(BenchmarkError, match="the first step failed: ValueError: no device"):
        first_step_row()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "huge"], "--model is 'huge'; accepted: laptop, tiny"),
        (["--profile", "hf-eager"], "--profile is 'hf-eager'; accepted: dense, sparse"),
        (["--repeats", "0"], "--repeats is 0; accepted: an integer of at least 1"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"train_step: {message}"
