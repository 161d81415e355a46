"""The main experiment: the models it compares, and that it runs from its command line to its report."""

import dataclasses
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.laptop import switch_vs_dense as laptop
from experiments.switch_vs_dense import STUDY
from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.configuration import to_dict
from moe_jax.results.rows import final_loss, read_rows
from moe_jax.study.run import run_study
from moe_jax.study.selection import select_runs
from moe_jax.study.study import Preset, Study
from moe_jax.training import loop
from moe_jax.training.config import TrainConfig


def models(preset: str) -> dict[str, TrainConfig]:
    return {config.name: config for config in select_runs([STUDY], preset, [STUDY.name], 1).runs}


@pytest.mark.parametrize("preset", STUDY.presets)
def test_models_differ_only_in_their_mixture(preset: str) -> None:
    configs = models(preset)
    dense = to_dict(configs.pop("dense"))
    assert dense["model"]["moe_layers"] == []
    for name, config in configs.items():
        sparse = to_dict(config)
        assert sparse["model"]["moe"]["num_experts"] == laptop.EXPERTS[name]
        sparse["model"] |= {"moe_layers": [], "moe": None}
        assert sparse | {"name": "dense"} == dense


@pytest.mark.parametrize("preset", STUDY.presets)
def test_a_token_costs_the_same_but_for_the_router(preset: str) -> None:
    configs = models(preset)
    dense = configs.pop("dense")
    length = dense.data.sequence_length
    base = flops_per_token(dense.model, length)
    for config in configs.values():
        sparse = flops_per_token(config.model, length)
        assert sparse.forward - sparse.router == base.forward
        assert sparse.forward < 1.02 * base.forward
        assert count_parameters(config.model).total > count_parameters(dense.model).total


def test_a_seed_of_every_model_comes_before_the_next_seed() -> None:
    models = ["dense", "switch-4", "switch-16", "switch-64"]
    runs = [(config.seed, config.name) for config in select_runs([STUDY], "laptop", [STUDY.name]).runs]
    assert runs == [(seed, model) for seed in range(3) for model in models]


def tiny(text: Path) -> Study:
    def get_config(model: str) -> ConfigDict:
        config = laptop.get_config(model)
        config.steps, config.eval_every, config.eval_batches = 4, 2, 1
        config.optimizer.warmup_steps = 1
        config.data.corpus = f"text_files:{text}"
        config.data.tokenizer = "bytes"
        config.data.sequence_length, config.data.batch_size = 16, 4
        config.model.vocab_size, config.model.model_dim, config.model.ffn_dim = 257, 16, 32
        if model != "dense":
            config.model.moe.group_size = 64
        return config

    return dataclasses.replace(STUDY, presets={"quick": Preset(get_config, 2, models=("dense", "switch-4"))})


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of a text that is long enough to train on.\n" for i in range(400)))
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    return tiny(text)


def test_runs_from_the_command_line_to_the_report(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    compiled, compile_steps = [], loop.compile_steps
    monkeypatch.setattr(loop, "compile_steps", lambda *of: compiled.append(of[0].name) or compile_steps(*of))
    arguments = ["--preset", "quick", "--output", str(output)]
    assert run_study(study, "", arguments) == 0
    # Once for both seeds, which differ all the same.
    assert compiled == ["dense", "switch-4"]
    assert len({final_loss(row) for row in read_rows(output / "results.jsonl")}) == 4
    printed = capsys.readouterr().out
    assert "4 of 4 runs" in printed
    assert "The baseline, dense, ended with a validation loss of" in printed
    assert [(row["name"], row["seed"]) for row in read_rows(output / "results.jsonl")] == [
        ("dense", 0),
        ("switch-4", 0),
        ("dense", 1),
        ("switch-4", 1),
    ]
    report = (output / "README.md").read_text()
    assert "python -m experiments.switch_vs_dense --preset quick`" in report
    assert (output / "loss.png").stat().st_size > 10_000
    assert (output / "load.png").stat().st_size > 10_000
    before = (output / "results.jsonl").read_bytes()
    assert run_study(study, "", arguments) == 0
    assert (output / "results.jsonl").read_bytes() == before


def test_seeds_below_one_are_refused(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as stopped:
        run_study(study, "", ["--preset", "quick", "--seeds", "0", "--output", str(output)])
    assert stopped.value.code == 2
    assert "--seeds: 0; accepted: an integer of at least 1" in capsys.readouterr().err
    assert not output.exists()
