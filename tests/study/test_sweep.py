import dataclasses
import json
from pathlib import Path

import pytest

from moe_jax.configuration import to_dict
from moe_jax.layers.attention import GroupedQuery
from moe_jax.layers.moe import MoEConfig
from moe_jax.models.config import ModelConfig
from moe_jax.reports.tables import format_table
from moe_jax.results.measures import diverged
from moe_jax.results.rows import append_row, read_rows
from moe_jax.results.summary import summarize
from moe_jax.study.sweep import run_directory, run_sweep
from moe_jax.training.config import TrainConfig
from moe_jax.training.result import DivergenceError

DENSE = ModelConfig(vocab_size=257, num_layers=2, model_dim=32, ffn_dim=64, attention=GroupedQuery(2))


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training returns, as far as a sweep needs it."""

    curve: list
    corpus_name: str = "python_source"
    corpus_digest: str = "5eed"
    seconds: float = 20.0
    compile_seconds: float = 2.0


class FakeTraining:
    """Trains nothing, notes what it was asked for, and is killed in the run number `killed_at`."""

    def __init__(self, killed_at: int | None = None):
        self.asked: list[tuple[str, int, Path]] = []
        self.killed_at = killed_at

    def __call__(self, config: TrainConfig, workdir: Path) -> Result:
        self.asked.append((config.name, config.seed, workdir))
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        curve = [
            {
                "step": step,
                "tokens": step * 64,
                "seconds": step / 5,
                "validation_loss": loss,
                "bits_per_byte": loss / 0.69,
            }
            | {"routing": {}, "load": {}}
            for step, loss in ((0, 5.5), (config.steps, 2.0))
        ]
        return Result(curve)


@pytest.fixture
def configs() -> list[TrainConfig]:
    sparse = dataclasses.replace(DENSE, moe_layers=(1,), moe=MoEConfig(num_experts=4))
    return [
        TrainConfig(name=name, model=model, seed=seed, steps=200)
        for name, model in (("dense", DENSE), ("switch-4", sparse))
        for seed in (0, 1)
    ]


def test_one_seed_of_every_model_comes_before_the_next_seed(tmp_path, configs):
    training, tables = FakeTraining(), []
    rows = run_sweep(configs, tmp_path / "results.jsonl", tmp_path / "runs", training, on_row=tables.append)
    asked = [(name, seed) for name, seed, _ in training.asked]
    assert asked == [("dense", 0), ("switch-4", 0), ("dense", 1), ("switch-4", 1)]
    assert [(row["name"], row["seed"]) for row in rows] == asked
    assert [len(table) for table in tables] == [1, 2, 3, 4]
    assert read_rows(tmp_path / "results.jsonl") == rows


def test_a_row_has_all_that_a_report_reads(tmp_path, configs):
    rows = run_sweep(configs, tmp_path / "results.jsonl", tmp_path, FakeTraining())
    row = rows[1]
    assert TrainConfig.from_dict(row["config"]) == configs[2]
    assert row["corpus"] == {"name": "python_source", "digest": "5eed"}
    assert (row["seconds"], row["compile_seconds"]) == (20.0, 2.0)
    assert row["parameters"]["total"] - row["parameters"]["active"] == 3 * 2 * 32 * 64
    assert row["flops_per_token"] > rows[0]["flops_per_token"]
    assert row["git_revision"]
    assert row["finished"].endswith("+00:00")
    assert [summary.experts for summary in summarize(rows, "dense")] == [0, 4]
    assert "switch-4" in format_table(rows)


def test_a_killed_sweep_goes_on_in_the_run_it_was_killed_in(tmp_path, configs):
    results, killed, again = tmp_path / "results.jsonl", FakeTraining(killed_at=3), FakeTraining()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(configs, results, tmp_path, killed)
    assert len(read_rows(results)) == 2
    rows = run_sweep(configs, results, tmp_path, again)
    assert again.asked[0] == killed.asked[2]
    assert len(again.asked) == 2
    assert len(rows) == len(read_rows(results)) == 4


def test_any_other_field_makes_another_run(tmp_path, configs):
    results = tmp_path / "results.jsonl"
    run_sweep(configs[:1], results, tmp_path, FakeTraining())
    changed = dataclasses.replace(configs[0], steps=300)
    training = FakeTraining()
    rows = run_sweep([changed], results, tmp_path, training)
    assert len(training.asked) == len(rows) == 1
    assert run_directory(changed, tmp_path) != run_directory(configs[0], tmp_path)
    assert len(read_rows(results)) == 2


@pytest.mark.parametrize("kind", [TrainConfig, ModelConfig, MoEConfig])
def test_a_field_that_is_added_orphans_no_result(tmp_path, configs, kind):
    """A later version of the code has one field more, with the old behaviour as its default."""
    results, old = tmp_path / "results.jsonl", configs[2]
    rows = run_sweep([old], results, tmp_path, FakeTraining())

    def later(config, value=7):
        """The configuration as a version with the field has it."""
        if isinstance(config, kind):
            added = dataclasses.make_dataclass("Later", [("added", int, 7)], bases=(kind,), frozen=True)
            return added(**{f.name: getattr(config, f.name) for f in dataclasses.fields(kind)}, added=value)
        part = "model" if isinstance(config, TrainConfig) else "moe"
        return dataclasses.replace(config, **{part: later(getattr(config, part), value)})

    training = FakeTraining()
    new = dataclasses.replace(later(old), seed=1)
    found = run_sweep([later(old), new], results, tmp_path, training)
    assert [name for name, *_ in training.asked] == [new.name]
    assert found[0] == rows[0]
    assert run_directory(later(old), tmp_path) == run_directory(old, tmp_path)
    # Rows from before and after stand in one table.
    assert "added" in json.dumps(found[1]["config"])
    assert len(summarize(found, old.name)) == 1
    assert run_directory(later(old, value=8), tmp_path) != run_directory(old, tmp_path)


def test_rows_of_other_studies_stay(tmp_path, configs):
    results, other = tmp_path / "results.jsonl", {"name": "other", "config": to_dict(configs[3])}
    append_row(results, other)
    rows = run_sweep(configs[:1], results, tmp_path, FakeTraining())
    assert [row["name"] for row in rows] == ["dense"]
    assert read_rows(results) == [other, *rows]


def test_directories_are_named_for_people(tmp_path, configs):
    name = run_directory(configs[2], tmp_path).name
    assert name.startswith("switch-4-seed0-")
    assert len(name) == len("switch-4-seed0-") + 8


def test_a_run_that_diverges_is_a_row_where_it_may(tmp_path, configs):
    def diverges(config, workdir):
        if config.name == "dense":
            return FakeTraining()(config, workdir)
        error = DivergenceError("total_loss is nan at step 3")
        error.result = Result(FakeTraining()(config, workdir).curve[:1])
        raise error

    with pytest.raises(DivergenceError):
        run_sweep(configs, tmp_path / "strict.jsonl", tmp_path, diverges)
    rows = run_sweep(configs, tmp_path / "results.jsonl", tmp_path, diverges, may_diverge=True)
    assert [row.get("diverged") for row in rows] == [None, True, None, True]
    assert [diverged(row) for row in rows] == [False, True, False, True]
    assert len(rows[1]["curve"]) == 1


def test_scores_of_the_last_evaluation_are_the_row_s(tmp_path, configs):
    def scores(config, workdir):
        result = FakeTraining()(config, workdir)
        result.curve[0]["scores"], result.curve[-1]["scores"] = {"exact_match": 0.1}, {"exact_match": 0.4}
        return result

    (row,) = run_sweep(configs[:1], tmp_path / "results.jsonl", tmp_path, scores)
    assert row["scores"] == {"exact_match": 0.4}
