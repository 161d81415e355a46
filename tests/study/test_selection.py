"""Selections: a model's arms are shorter runs of it with schedules of their own."""

from ml_collections import ConfigDict

from moe_jax.study.selection import select_runs
from moe_jax.study.study import Model, Preset, Study
from moe_jax.study.sweep import run_directory
from tests.training.tiny_runs import tiny_values


def get_config(model):
    return ConfigDict(tiny_values(sets={"steps": 80, "optimizer.warmup_steps": 10}) | {"name": model})


def test_arms_have_fewer_steps_of_each_kind_and_are_compared_with_their_baseline_s(tmp_path):
    models = tuple(Model(name, name, baseline="dense") for name in ("dense", "sparse"))
    study = Study("budgets", models, {"laptop": Preset(get_config, 2, arms=(4, 2))}, report=str)
    selection = select_runs([study], "laptop", ["budgets"])
    table = selection.tables["budgets"]
    assert [(entry.model.name, entry.named.seed) for entry in table] == [
        (f"{name}{share}", seed) for seed in (0, 1) for name in ("dense", "sparse") for share in ("@1of4", "@1of2", "")
    ]
    assert len(selection.runs) == 12
    by_name = {entry.model.name: entry for entry in table}
    whole, arm = by_name["sparse"].named, by_name["sparse@1of4"].named
    assert (arm.name, arm.steps, arm.eval_every, arm.optimizer.warmup_steps) == ("sparse@1of4", 20, 2, 2)
    assert (whole.steps, whole.eval_every, whole.optimizer.warmup_steps) == (80, 8, 10)
    assert (arm.model, arm.data) == (whole.model, whole.data)
    assert by_name["sparse@1of4"].model.baseline == "dense@1of4"
    # A run's folder is one folder.
    assert run_directory(arm, tmp_path).parent == tmp_path
    assert select_runs([study], "laptop", ["budgets"], 1, ["dense"]).runs == [
        entry.run for entry in table if entry.named.seed == 0 and entry.model.name.startswith("dense")
    ]
