"""The benchmark of the laptop preset's step runs, and profiles a model it timed."""

import json

from experiments.benchmarks import laptop_step
from experiments.benchmarks.laptop_step import main
from experiments.benchmarks.train_step import draw_batch

SMALL = ["model.model_dim=8", "model.ffn_dim=8", "model.num_layers=1", "data.batch_size=1", "data.sequence_length=8"]


def test_rows_of_models_products_and_a_profile(monkeypatch, capsys):
    monkeypatch.setattr(laptop_step, "text_batch", draw_batch)
    fields = [word for field in SMALL for word in ("--set", field)]
    assert main(["--models", "dense", "--repeats", "1", "--profile", "dense", "--json", *fields]) == 0
    header, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert header["tokens"] == 8
    steps = {row["name"]: row for row in rows if row["row"] == "step"}
    assert list(steps) == ["dense", "matmul 2048^3", "matmul layer"]
    assert steps["dense"]["of_first"] == 1.0
    assert max(steps[name]["of_matmul"] for name in list(steps)[1:]) == 1.0
    assert {row["name"] for row in rows if row["row"] == "profile"} == {"dense"}
    lines = laptop_step.table(header, rows).splitlines()
    assert lines[0].endswith("8 tokens a step")
    assert any(line.startswith("dense ") for line in lines)
    assert "dense: milliseconds of a step by part of the model" in lines


def test_a_profile_of_a_model_that_is_not_timed_is_refused(capsys):
    assert main(["--models", "dense", "--profile", "switch-4"]) == 2
    assert capsys.readouterr().err == "laptop_step: --profile is 'switch-4'; accepted: dense\n"
