"""The comparison of routers: conditions are equal, and it runs from its command line to its report."""

import dataclasses
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.laptop import compare_routers as laptop
from experiments.compare_routers import STUDY
from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.configuration import ConfigError
from moe_jax.results.rows import read_rows
from moe_jax.routing import ROUTERS
from moe_jax.study.run import run_study
from moe_jax.study.selection import select_runs
from moe_jax.study.study import Preset, Study


def configs(preset):
    return {entry.model.key: entry.run for entry in select_runs([STUDY], preset, [STUDY.name], 1).tables[STUDY.name]}


def test_every_router_is_compared():
    compared = {config.model.moe.router_name for config in configs("laptop").values() if config.model.moe_layers}
    assert compared == set(ROUTERS)
    assert {kind.variant for kind in laptop.MODELS.values()} == set(laptop.VARIANTS)


@pytest.mark.parametrize("preset", STUDY.presets)
def test_a_token_s_experts_cost_what_the_dense_layer_does(preset):
    models = configs(preset)
    for model, config in models.items():
        length = config.data.sequence_length
        dense = models["masked/dense" if config.data.task_name == "masked" else "dense"]
        assert flops_per_token(config.model, length).ffn == flops_per_token(dense.model, length).ffn, model
        assert (config.steps, config.data, config.optimizer) == (dense.steps, dense.data, dense.optimizer)


@pytest.mark.parametrize("preset", STUDY.presets)
def test_mixtures_have_as_many_experts_parameters(preset):
    counts = {
        model: count_parameters(config.model).experts
        for model, config in configs(preset).items()
        if config.model.moe_layers and model != "dense_mixture"
    }
    assert len(set(counts.values())) == 1, counts


def test_what_sees_later_tokens_is_kept_to_the_encoder():
    models = configs("laptop")
    for model, config in models.items():
        assert config.model.causal == (laptop.MODELS[model].task == "causal")
    assert all(f"masked/{variant}" in models and variant not in models for variant in laptop.NONCAUSAL)


def test_chosen_routers_come_with_the_dense_models():
    assert STUDY.with_baselines(["gshard"], "--routers") == ["dense", "gshard"]
    names = STUDY.with_baselines(["soft_moe", "switch"], "--routers")
    assert names == ["dense", "switch", "soft_moe"]
    chosen = [model.key for model in STUDY.chosen(STUDY.presets["quick"], names)]
    assert chosen == ["dense", "switch", "masked/dense", "masked/switch", "masked/soft_moe"]
    with pytest.raises(ConfigError, match=r"--routers is 'swich'; accepted: .*did you mean 'switch'"):
        STUDY.with_baselines(["swich"], "--routers")


def tiny(text: Path) -> Study:
    def get_config(model: str) -> ConfigDict:
        config = laptop.get_config(model)
        config.steps, config.eval_every, config.eval_batches = 2, 1, 1
        config.optimizer.warmup_steps = 1
        config.data.corpus = f"text_files:{text}"
        config.data.tokenizer = "bytes"
        config.data.sequence_length, config.data.batch_size = 16, 4
        config.model.vocab_size = 257 + (config.data.task == "masked")
        config.model.model_dim = 16
        if "moe" in config.model:
            config.model.moe.expert_dim = 8
            config.model.moe.group_size = 64
        return config

    models = ("dense", "deepseek", "deepseek-unbalanced", "masked/dense", "masked/soft_moe")
    return dataclasses.replace(STUDY, presets={"quick": Preset(get_config, 1, models=models)})


def test_runs_from_the_command_line_to_the_report(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of a text that is long enough to train on.\n" for i in range(400)))
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    study = tiny(text)
    output = tmp_path / "output"
    arguments = ["--preset", "quick", "--output", str(output)]
    assert run_study(study, "", arguments) == 0
    assert "5 of 5 runs" in capsys.readouterr().out
    rows = read_rows(output / "results.jsonl")
    assert [(row["name"], row["config"]["data"]["task"]["kind"]) for row in rows] == [
        ("dense", "causal"),
        ("deepseek", "causal"),
        ("deepseek-unbalanced", "causal"),
        ("dense", "masked"),
        ("soft_moe", "masked"),
    ]
    report = (output / "README.md").read_text()
    for part in ("## Causal decoder", "## Masked-language-model encoder", "times without balancing", "load Gini"):
        assert part in report
    assert all((output / f"{task}.png").stat().st_size > 10_000 for task in ("causal", "masked"))
    before = {path: path.read_bytes() for path in output.glob("*.*")}
    assert run_study(study, "", arguments) == 0
    assert {path: path.read_bytes() for path in output.glob("*.*")} == before


def test_what_cannot_be_run_is_one_line(capsys):
    assert run_study(STUDY, "", ["--routers", "swich"]) == 2
    assert capsys.readouterr().err.startswith("compare_routers: --routers is 'swich'; accepted: ")
    with pytest.raises(SystemExit):
        run_study(STUDY, "", ["--seeds", "0"])
    assert "--seeds: 0; accepted: an integer of at least 1" in capsys.readouterr().err
