"""The studies of the Switch Transformer paper: what they compare, what they train, and their reports."""

import collections
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.gpu import switch_transformer as gpu
from configs.laptop import switch_transformer as laptop
from experiments.claims import figures
from experiments.switch_transformer.studies import STUDIES, TABLES, TIMED
from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.claims.claims import read_claims
from moe_jax.configuration import to_dict
from moe_jax.results.notes import read_notes
from moe_jax.results.rows import read_rows
from moe_jax.study import run as run_module
from moe_jax.study import selection as selections
from moe_jax.study.run import run_studies
from moe_jax.study.selection import Selection
from moe_jax.study.study import Preset
from moe_jax.study.sweep import run_name
from moe_jax.training.config import TrainConfig
from moe_jax.training.result import RunResult
from tests.active_flops import with_seats_for_all, xla_flops_per_token, xla_products_per_token
from tests.study.side_tasks import fake_train

MODELS = [f"{study}/{model}" for study, models in laptop.STUDIES.items() for model in models]
# What the paper's tables compare although it costs more: a larger dense model, a wider sparse one, and two experts.
COSTLIER = {"dense-large", "switch-wide-1.0", "top2-2.0", "top2-1.25", "top2-1.0"}
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
GET_CONFIG = {"quick": laptop.get_quick_config, "laptop": laptop.get_config, "gpu": gpu.get_config}


@functools.cache
def config_of(preset: str, model: str) -> TrainConfig:
    return TrainConfig.from_dict(GET_CONFIG[preset](model).to_dict())


def select_runs(preset: str, asked: list[str], seeds: int | None, *more) -> Selection:
    return selections.select_runs(STUDIES, preset, asked, seeds, *more)


def costlier(model: str) -> bool:
    return model.rpartition("/")[2] in COSTLIER


@pytest.mark.parametrize("preset", GET_CONFIG)
def test_active_cost_is_the_dense_model_s(preset: str) -> None:
    for model in MODELS:
        dense, own = config_of(preset, "experts/dense"), config_of(preset, model)
        # On texts of one length.
        flops, base = (flops_per_token(c.model, *own.lengths).forward for c in (own, dense))
        active, parameters = (count_parameters(c.model).active for c in (own, dense))
        if costlier(model):
            assert flops > 1.05 * base, model
        else:
            assert flops == pytest.approx(base, rel=0.01), model
            assert active == pytest.approx(parameters, rel=0.01), model


def test_xla_counts_as_much_for_the_products_of_both() -> None:
    counted: dict[str, float] = {}
    for model in filter(lambda model: not costlier(model), MODELS):
        own, dense = config_of("laptop", model), config_of("laptop", "experts/dense").model
        products = []
        for shape in (own.model, dense):
            key = repr((with_seats_for_all(shape), own.lengths))
            if key not in counted:
                counted[key] = xla_products_per_token(dataclasses.replace(own, model=shape))
            products.append(counted[key])
        assert abs(products[0] / products[1] - 1) < 0.01, model
        assert products[0] == pytest.approx(flops_per_token(own.model, *own.lengths).forward, rel=1e-6), model


def test_xla_counts_nearly_as_much_for_the_whole_of_both() -> None:
    """It counts the softmax of a router, too, of 256 experts 1% by itself."""
    dense = xla_flops_per_token(config_of("laptop", "experts/dense"))
    for experts, margin in ((4, 0.01), (16, 0.01), (64, 0.01), (256, 0.015)):
        sparse = xla_flops_per_token(config_of("laptop", f"experts/switch-{experts}"))
        assert abs(sparse / dense - 1) < margin, experts


@pytest.mark.parametrize("preset", GET_CONFIG)
def test_models_are_trained_on_the_same(preset: str) -> None:
    for study, models in laptop.STUDIES.items():
        configs = [config_of(preset, f"{study}/{model}") for model in models]
        assert len({(c.steps, c.data, c.optimizer, c.eval_every, c.eval_batches) for c in configs}) == 1, study


@pytest.mark.parametrize("preset", GET_CONFIG)
def test_a_model_is_trained_once_and_after_what_it_needs(preset: str) -> None:
    selection = select_runs(preset, list(laptop.STUDIES), 2)
    unnamed = collections.Counter(json.dumps(to_dict(config) | {"name": ""}) for config in selection.runs)
    assert set(unnamed.values()) == {1}
    done: set[str] = set()
    # As a sweep orders them.
    for config in sorted(selection.runs, key=lambda config: config.seed):
        needed = {part.run for part in (config.start, config.distillation) if part}
        assert needed <= done
        done.add(run_name(config))
    assert {study: len(rows) for study, rows in selection.tables.items()} == {
        study: 2 * len(models) for study, models in laptop.STUDIES.items()
    }


def test_what_other_runs_need_is_trained_with_them() -> None:
    selection = select_runs("laptop", ["distillation_fine_tuned"], 1)
    assert [(config.name, config.start is not None) for config in selection.runs] == [
        ("dense", False),
        ("dense-0.1", True),
        ("switch-64", False),
        ("teacher", True),
        ("distilled", True),
    ]
    student, teacher, distilled = (selection.runs[i] for i in (1, 3, 4))
    assert distilled.start == student.start
    assert distilled.distillation.run == run_name(teacher)


def test_seeds_are_the_study_s_unless_asked_for() -> None:
    counts = [
        len({entry.named.seed for entry in select_runs("laptop", ["initialization"], seeds).tables["initialization"]})
        for seeds in (None, 2)
    ]
    assert counts == [6, 2]
    assert len({entry.run.seed for entry in select_runs("laptop", ["exploration"], None).tables["exploration"]}) == 3


def test_some_models_with_other_fields() -> None:
    """What a model starts from or learns from has them too, and is there though it is not asked for."""
    only, assignments = ("student", "distilled"), ("steps=107", "data.batch_size=192")
    selection = select_runs("laptop", ["distillation"], 1, only, assignments)
    assert [entry.named.name for entry in selection.tables["distillation"]] == list(only)
    # The student is the dense model of another study.
    assert {run.name for run in selection.runs} == {"dense", "switch-64", "distilled"}
    assert {(run.steps, run.data.batch_size) for run in selection.runs} == {(107, 192)}
    all_of_it = select_runs("laptop", ["distillation"], 1)
    assert not set(map(run_name, selection.runs)) & set(map(run_name, all_of_it.runs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--models", "switch-4"],
            "--models is 'switch-4'; accepted: dense, that others are compared with, among them",
        ),
        (["--models", "dense", "argmax"], "--models is 'argmax'; accepted: dense, switch-16, switch-256, "),
        (["--set", "stepz=3"], "stepz is not a field; accepted: "),
        (["--set", "steps"], "--set is 'steps'; accepted: key=value"),
    ],
)
def test_wrong_models_and_fields_are_refused_before_anything_is_written(run, capsys, options, message) -> None:
    status, output = run("experts", *options)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_few_models_of_a_study_run_with_other_fields(run) -> None:
    status, output = run("exploration", "--models", "argmax", "jitter", "--set", "steps=4", "--set", "eval_every=2")
    assert status == 0
    rows = read_rows(output / "exploration" / "results.jsonl")
    assert [(row["name"], row["curve"][-1]["step"]) for row in rows] == [("argmax", 4), ("jitter", 4)]
    text = (output / "exploration" / "README.md").read_text()
    assert "exploration --preset quick --models argmax jitter --set steps=4 --set eval_every=2" in text


def test_there_is_a_table_of_the_paper_for_every_model() -> None:
    assert TABLES.keys() == laptop.STUDIES.keys()
    for study, table in TABLES.items():
        assert table.values.keys() == laptop.STUDIES[study].keys(), study
    assert set(TIMED) <= TABLES.keys()


@pytest.mark.parametrize("study", laptop.STUDIES)
def test_notes_are_on_the_committed_table(study: str) -> None:
    """If this fails, the table has changed: read the notes again, correct them, and name the new digest."""
    folder = EXPERIMENTS / "results" / "switch_transformer" / study
    notes = read_notes(folder)
    assert bool(notes) == (folder / "notes.md").exists()
    assert notes in (folder / "README.md").read_text()


def test_claims_read_models_that_there_are() -> None:
    read = [
        claim
        for claim in read_claims(EXPERIMENTS / "claims", figures())
        if claim.study.startswith("switch_transformer")
    ]
    assert len(read) > 20
    for claim in read:
        folder, _, study = claim.study.partition("/")
        assert folder == "switch_transformer" + "-gpu" * claim.accelerator, claim.id
        assert set(claim.rule.models) <= laptop.STUDIES[study].keys(), claim.id
        assert getattr(claim.rule, "metric", "loss") in ("loss", TABLES[study].metric), claim.id
        command = f"python -m experiments.switch_transformer {study}" + " --preset gpu" * claim.accelerator
        assert claim.command == command, claim.id


def tiny(text: Path, pairs: Path):
    def get_config(model: str) -> ConfigDict:
        config = laptop.get_config(model)
        config.steps, config.eval_every, config.eval_batches, config.checkpoint_every = 2, 1, 1, 2
        config.optimizer.warmup_steps = 1
        config.data.tokenizer = "bytes"
        config.data.corpus = f"text_files:{text}"
        if config.data.task.kind == "text_to_text":
            config.data.corpus, config.data.tokenizer_corpus = f"json_lines:{pairs}", f"text_files:{text}"
            config.data.task.train_examples = 8
        config.data.sequence_length, config.data.task.target_length, config.data.batch_size = 16, 8, 4
        config.model.vocab_size = 257 + config.data.task.sentinels
        config.model.model_dim = config.model.attention.head_dim = 16
        if "moe" in config.model:
            config.model.moe.expert_dim = 8
            config.model.moe.group_size = 32
        return config

    presets = {"quick": Preset(get_config, 1)}
    return [dataclasses.replace(study, presets=presets, times_steps=False) for study in STUDIES]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs studies in tiny models; returns the folder of what they leave."""
    text, pairs = tmp_path / "text.txt", tmp_path / "pairs.jsonl"
    text.write_text("".join(f"Line {i} of a text that is long enough to train on.\n" for i in range(400)))
    lines = [json.dumps({"inputs": f"what comes after {i}?", "targets": str(i + 1)}) for i in range(100)]
    pairs.write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    studies, output = tiny(text, pairs), tmp_path / "output"

    def run(*arguments: str) -> tuple[int, Path]:
        # One job, in this process; other tests of commands start processes.
        options = ["--jobs", "1", *arguments, "--preset", "quick", "--output", str(output)]
        return run_studies("switch_transformer", "", studies, options), output

    return run


def train_fake(config: TrainConfig, workdir: Path) -> RunResult:
    """Returns what `train` would, with invented losses and an even load on all experts."""
    result = fake_train(config, workdir)
    even = {
        f"layer_{i}": [1 / config.model.moe.num_experts] * config.model.moe.num_experts for i in config.model.moe_layers
    }
    return dataclasses.replace(result, curve=[point | {"load": even} for point in result.curve])


def trains_nothing(*_: object, **__: object) -> None:
    raise AssertionError


def test_runs_from_the_command_line_to_the_report(run, capsys, monkeypatch) -> None:
    status, output = run("distillation_fine_tuned")
    assert status == 0
    names = sorted(path.name.partition("-seed")[0] for path in (output / "runs").iterdir())
    # Called as the first study that has them calls them.
    assert names == ["dense", "dense-0.1", "distilled", "switch-64", "teacher"]
    rows = read_rows(output / "distillation_fine_tuned" / "results.jsonl")
    assert [row["name"] for row in rows] == ["student", "teacher", "distilled"]
    assert [set(row["scores"]) for row in rows] == [{"exact_match", "token_accuracy"}] * 3
    assert rows[1]["curve"][-1]["routing"]
    assert rows[1]["config"]["start"]["run"] == "../experts/switch-64"
    text = (output / "distillation_fine_tuned" / "README.md").read_text()
    assert "python -m experiments.switch_transformer distillation_fine_tuned --preset quick" in text
    assert not re.search(r"\b(nan|None)\b", text)
    assert (output / "distillation_fine_tuned" / "loss.png").exists()

    # What other runs needed has been trained with them.
    monkeypatch.setattr(run_module, "train_here", trains_nothing)
    printed = capsys.readouterr().out
    assert run("distillation_fine_tuned")[0] == 0
    assert capsys.readouterr().out.strip() in printed


def test_the_table_of_runs_is_made_of_the_studies_tables_again(run, monkeypatch) -> None:
    """Also of those of studies that are not asked for, which share runs with the one that is."""
    monkeypatch.setattr(run_module, "train_here", train_fake)
    _, output = run("exploration", "precision", "attention")
    path = output / "results.jsonl"
    before = {row["name"]: row for row in read_rows(path)}
    path.unlink()
    shutil.rmtree(output / "exploration")

    monkeypatch.setattr(run_module, "train_here", trains_nothing)
    assert run("attention")[0] == 0
    after = {row["name"]: row for row in read_rows(path)}
    assert after.keys() == before.keys() - laptop.STUDIES["exploration"].keys()
    assert all(after[name] == before[name] for name in after)
    # Once each.
    assert len(read_rows(path)) == len(after)


def test_a_study_that_is_not_there_is_refused_before_anything_is_written(run, capsys) -> None:
    status, output = run("distilation")
    assert status == 2
    assert "STUDY is 'distilation'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_a_number_below_one_is_refused(run, capsys, option) -> None:
    with pytest.raises(SystemExit):
        run("exploration", option, "0")
    assert f"{option}: 0; accepted: an integer of at least 1" in capsys.readouterr().err
