"""Dense against GLaM: that a token costs the same, and that the study runs from its command line to its report."""

import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path

import pytest

from configs.gpu import glam as gpu
from configs.laptop import glam as laptop
from experiments.claims import HERE, figures
from experiments.glam import STUDY
from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.claims.claims import read_claims
from moe_jax.configuration import ConfigError, to_dict
from moe_jax.results.rows import read_rows
from moe_jax.study import run as run_module
from moe_jax.study import step_costs
from moe_jax.study.few_shot_scores import Questions
from moe_jax.study.run import run_study
from moe_jax.study.selection import select_runs
from moe_jax.study.study import Preset, Study
from moe_jax.study.sweep import run_name
from moe_jax.training.config import TrainConfig
from tests.active_flops import xla_flops_per_token, xla_products_per_token
from tests.results.fake_rows import fake_size_rows

SPARSE = [model for model, kind in laptop.MODELS.items() if kind.experts]
CONFIGS = {"laptop": laptop.get_config, "gpu": gpu.get_config}


@functools.cache
def config(preset: str, model: str) -> TrainConfig:
    return TrainConfig.from_dict(CONFIGS[preset](model).to_dict())


@functools.cache
def products(preset: str, model: str) -> float:
    return xla_products_per_token(config(preset, model))


def twin(model: str) -> str:
    return f"dense-{laptop.MODELS[model].size}"


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("model", SPARSE)
def test_a_token_costs_what_it_does_in_the_dense_model(preset, model):
    """In operations, as counted from the configuration, and in parameters that it uses: to the last one."""
    sparse, dense = config(preset, model), config(preset, twin(model))
    length = dense.data.sequence_length
    flops = [flops_per_token(run.model, length).training for run in (sparse, dense)]
    active = [count_parameters(run.model).active for run in (sparse, dense)]
    assert flops[0] == flops[1]
    assert active[0] == active[1]


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("model", SPARSE)
def test_xla_counts_as_much_for_the_products_of_both(preset, model):
    sparse, counted = config(preset, model), products(preset, model)
    assert abs(counted / products(preset, twin(model)) - 1) < 0.01
    assert counted == pytest.approx(flops_per_token(sparse.model, *sparse.lengths).forward, rel=1e-6)


@pytest.mark.parametrize(("preset", "margin"), [("laptop", 0.03), ("gpu", 0.01)])
@pytest.mark.parametrize("model", ["glam-tiny-4", "glam-small-64", "glam-medium-16"])
def test_xla_counts_nearly_as_much_for_the_whole_of_both(preset, margin, model):
    """XLA's count of all that the program does. It has some fifty operations for each exact GELU, of which experts
    without a gate have half as many again; at the laptop's widths they weigh up to 3%, at the GPU's less than 1%.
    """
    counted, base = (xla_flops_per_token(config(preset, name)) for name in (model, twin(model)))
    assert abs(counted / base - 1) < margin


@pytest.mark.parametrize("preset", STUDY.presets)
def test_models_of_a_size_differ_only_in_their_mixture(preset):
    runs = {run.name: to_dict(run) for run in select_runs([STUDY], preset, [STUDY.name], 1).runs}
    for name, sparse in runs.items():
        if laptop.MODELS[name].experts:
            assert sparse["model"]["moe"]["num_experts"] == laptop.MODELS[name].experts
            assert sparse["model"]["moe_layers"][:2] == [0, 2]
            sparse["model"] |= {"moe_layers": [], "moe": None}
            assert sparse | {"name": twin(name)} == runs[twin(name)]


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("model", SPARSE)
def test_first_logits_spread_as_a_released_router_s(preset, model):
    """A router of 0.02 at a width of 768: the standard deviation of the logits of a normalised token."""
    run = config(preset, model).model
    spread = run.moe.router.init_std * math.sqrt(run.model_dim)
    assert spread == pytest.approx(0.02 * math.sqrt(768), rel=0.01)


def test_the_gpu_s_models_have_as_many_parameters_as_the_config_says():
    counts = [count_parameters(config("gpu", f"dense-{size}").model).active / 1e6 for size in laptop.SIZES]
    assert [round(count) for count in counts] == [22, 55, 84]
    most = max(count_parameters(config("gpu", model).model).total for model in SPARSE)
    assert round(most / 1e6) == 634


@pytest.mark.parametrize(
    "model",
    ["glam", "dense", "dense-large", "glam-small-6", "glam-medium-4"],
)
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ConfigError, match=f"model is '{model}'; accepted: dense-medium, .*did you mean"):
        laptop.get_config(model)


def test_claims_read_models_of_the_study():
    claims = [claim for claim in read_claims(HERE / "claims", figures()) if claim.study == "glam"]
    assert claims
    for claim in claims:
        assert set(claim.rule.models) <= {model.name for model in STUDY.models}, claim.id
        assert claim.command == "python -m experiments.glam"


def tiny(text: Path) -> Study:
    def get_config(model: str):
        config = laptop.get_config(model)
        config.steps, config.eval_every, config.eval_batches = 4, 2, 1
        config.optimizer.warmup_steps = 1
        config.data.corpus = f"text_files:{text}/*.txt"
        config.data.tokenizer = "bytes"
        config.data.validation_fraction = 0.2
        config.data.sequence_length, config.data.batch_size = 32, 2
        config.model.vocab_size, config.model.num_layers = 257, 2
        width = 16 if laptop.MODELS[model].size == "tiny" else 32
        laptop.set_width(config, width, head_dim=16)
        if "moe" in config.model:
            config.model.moe_layers, config.model.moe.group_size = (0,), 64
        return config

    questions = Questions({"continuation": 1, "last_word": 1}, 4, (0, 1))
    models = ("dense-tiny", "glam-tiny-4", "dense-small", "glam-small-4")
    preset = Preset(get_config, 1, models=models, questions=questions, watts=15.0)
    return dataclasses.replace(STUDY, presets={"quick": preset})


def changed(study: Study, **fields) -> Study:
    """The study with other fields of its preset."""
    return dataclasses.replace(study, presets={"quick": dataclasses.replace(study.presets["quick"], **fields)})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        lines = (f"v{number}00 = {i} + v{number}00\n" for i in range(30))
        (text / f"{number:02}.txt").write_text("".join(lines))
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(step_costs, "TURN_SECONDS", 0.001)
    return tiny(text)


def test_runs_from_the_command_line_to_the_report(
    study: Study, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--preset", "quick", "--output", str(output), "--watts", "20"]
    assert run_study(study, "", arguments) == 0
    assert "4 of 4 runs" in capsys.readouterr().out
    rows = read_rows(output / "results.jsonl")
    # Runs side by side end in any order.
    models = sorted(study.presets["quick"].models)
    assert sorted((row["name"], row["seed"]) for row in rows) == [(model, 0) for model in models]
    scores = read_rows(output / "scores.jsonl")
    # Of each run, two tasks with two numbers of shots.
    assert len({(score["run"], score["task"], score["shots"]) for score in scores}) == len(scores) == 4 * 2 * 2
    assert set(json.loads((output / "step_costs.json").read_text())["models"]) == set(models)
    report = (output / "README.md").read_text()
    for part in ("456 MWh", "20 W assumed", "| glam-small-4 | 4 |", "### continuation", "### last_word", "chance 25%"):
        assert part in report
    assert "python -m experiments.glam --preset quick --watts 20" in report
    assert all((output / name).stat().st_size > 10_000 for name in ("cost.png", "size.png"))
    # The report is made of the tables alone: without the runs it is the same, and nothing is measured or scored again.
    shutil.rmtree(output / "runs")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert run_study(study, "", arguments) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize(("options", "seeds"), [([], (1, 2)), (["--seeds", "3"], (3, 3))])
def test_seeds_are_the_model_s_unless_asked_for(study, output, monkeypatch, options, seeds):
    study = changed(study, seeds_of={"dense-small": 2, "glam-small-4": 2})
    planned = []

    def sweep(configs, *ways, **how):
        planned.extend(configs)
        raise ConfigError("the end")

    monkeypatch.setattr(run_module, "run_sweep", sweep)
    assert run_study(study, "", ["--preset", "quick", "--output", str(output), *options]) == 2
    expected = {
        (f"{kind}-{size}{end}", seed)
        for size, count in zip(("tiny", "small"), seeds, strict=True)
        for kind, end in (("dense", ""), ("glam", "-4"))
        for seed in range(count)
    }
    assert sorted((config.name, config.seed) for config in planned) == sorted(expected)


def test_progress_is_shown_whichever_model_ends_first(study, output, monkeypatch, capsys):
    ended = [row for row in fake_size_rows(1, ["small"])[::-1] if row["name"] in ("dense-small", "glam-small-4")]

    def sweep(configs, results, workdir, train, on_row, **how):
        names = {config.name: run_name(config) for config in configs}
        for row in ended:
            row["run"] = names[row["name"]]
        for count in range(1, len(ended) + 1):
            on_row(ended[:count])
        raise ConfigError("the end")

    monkeypatch.setattr(run_module, "run_sweep", sweep)
    assert run_study(study, "", ["--preset", "quick", "--output", str(output)]) == 2
    shown, error = capsys.readouterr()
    assert error == "glam: the end\n"
    assert "1 of 4 runs" in shown
    # Nothing to compare with until the dense model is there, which ends last.
    assert "glam-small-4" not in shown.partition(f"{len(ended) - 1} of 4 runs")[0]
    assert "glam-small-4" in shown


def test_questions_that_cannot_be_made_are_refused_before_training(study, output, capsys):
    study = changed(study, questions=Questions({"continuation": 1}, 100_000))
    assert run_study(study, "", ["--preset", "quick", "--output", str(output)]) == 2
    assert capsys.readouterr().err.startswith("glam: examples is 100000; accepted: ")
    assert not output.exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seeds", "0"], "--seeds: 0; accepted: an integer of at least 1"),
        (["--jobs", "0"], "--jobs: 0; accepted: an integer of at least 1"),
        (["--watts", "0"], "--watts: 0; accepted: a positive number"),
        (["--watts", "nan"], "--watts: nan; accepted: a positive number"),
    ],
)
def test_wrong_options_are_refused(study, output, capsys, option, message):
    with pytest.raises(SystemExit) as stopped:
        run_study(study, "", ["--preset", "quick", "--output", str(output), *option])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "glam-tiny-4"], "--models is 'glam-tiny-4'; accepted: dense-tiny, that others are compared"),
        (["--models", "dense-huge"], "--models is 'dense-huge'; accepted: dense-medium, dense-small, dense-tiny, "),
        (["--set", "stepz=3"], "stepz is not a field; accepted: "),
    ],
)
def test_wrong_models_and_fields_are_refused_before_anything_is_written(study, output, capsys, options, message):
    assert run_study(study, "", ["--preset", "quick", "--output", str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_few_models_run_with_other_fields(study, output):
    """Any of the study's, not only the preset's."""
    options = ["--models", "dense-tiny", "glam-tiny-16", "--set", "steps=6"]
    assert run_study(study, "", ["--preset", "quick", "--output", str(output), *options]) == 0
    rows = read_rows(output / "results.jsonl")
    assert sorted((row["name"], row["curve"][-1]["step"]) for row in rows) == [("dense-tiny", 6), ("glam-tiny-16", 6)]
    assert "--models dense-tiny glam-tiny-16 --set steps=6" in (output / "README.md").read_text()
