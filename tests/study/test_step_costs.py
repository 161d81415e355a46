"""What a step costs: measured once, by turns, and read with the rows."""

import json

import pytest

from moe_jax.configuration import ConfigError
from moe_jax.results.curves import curve_frame
from moe_jax.results.rows import append_row, read_study, step_seconds
from moe_jax.results.summary import summarize
from moe_jax.study import step_costs
from moe_jax.study.energy import EnergyCounter
from moe_jax.study.step_costs import measure_step_costs
from moe_jax.training.config import TrainConfig
from tests.results.fake_rows import fake_rows
from tests.training.tiny_runs import tiny_values, write_corpus


def config(tmp_path, name, **sets):
    return TrainConfig.from_dict(tiny_values(tmp_path / "corpus", sets) | {"name": name})


def costs_of(found):
    return {name: (cost["seconds"], cost["joules"]) for name, cost in found["models"].items()}


@pytest.fixture
def clock(monkeypatch):
    """A step takes as many seconds as its model is wide, and ten joules a second; nothing is compiled."""
    now = [0.0]
    log = []

    def training_step(config):
        def step():
            now[0] += config.model.model_dim
            log.append(config.name)

        return step

    monkeypatch.setattr(step_costs, "_training_step", training_step)
    monkeypatch.setattr(step_costs.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(step_costs, "energy_counter", lambda _: EnergyCounter("ten a second", lambda: 10 * now[0]))
    return log


def test_each_model_has_the_cost_of_one_step(tmp_path, clock):
    configs = [config(tmp_path, name, **{"model.model_dim": width}) for name, width in (("a", 8), ("b", 32))]
    measure_step_costs([*configs, *configs], tmp_path / "step_costs.json", turns=3)
    found = json.loads((tmp_path / "step_costs.json").read_text())
    assert found["counter"] == "ten a second"
    assert costs_of(found) == {"a": (8, 80), "b": (32, 320)}
    # By turns, each after a step that does not count.
    assert clock[-4:] == ["a", "a", "b", "b"]
    assert clock.count("a") == clock.count("b")


def test_without_a_counter_there_are_no_joules(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(step_costs, "energy_counter", lambda _: None)
    measure_step_costs([config(tmp_path, "a")], tmp_path / "step_costs.json", turns=2)
    found = json.loads((tmp_path / "step_costs.json").read_text())
    assert found["counter"] is None
    assert costs_of(found) == {"a": (8, None)}


def test_a_short_step_is_done_until_a_turn_is_half_a_second(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(step_costs, "TURN_SECONDS", 40.0)
    measure_step_costs([config(tmp_path, "a")], tmp_path / "step_costs.json", turns=1)
    assert len(clock) == 3 + 3 + 1 + 5
    assert json.loads((tmp_path / "step_costs.json").read_text())["models"]["a"]["seconds"] == 8


def test_what_is_there_is_kept_until_the_models_change(tmp_path, clock):
    path = tmp_path / "step_costs.json"
    measure_step_costs([config(tmp_path, "a")], path, turns=1)
    done = len(clock)
    measure_step_costs([config(tmp_path, "a")], path, turns=1)
    assert len(clock) == done
    measure_step_costs([config(tmp_path, "a"), config(tmp_path, "b")], path, turns=1)
    assert len(clock) > done
    done = len(clock)
    # A model of the same name that is another.
    wider = config(tmp_path, "b", **{"model.model_dim": 32})
    measure_step_costs([config(tmp_path, "a"), wider], path, turns=1)
    assert len(clock) > done
    assert costs_of(json.loads(path.read_text()))["b"] == (32, 320)


def test_a_run_with_a_teacher_is_refused(tmp_path, clock):
    taught = config(tmp_path, "a", distillation={"run": "teacher"})
    with pytest.raises(ConfigError, match="distillation"):
        measure_step_costs([taught], tmp_path / "step_costs.json")
    assert not (tmp_path / "step_costs.json").exists()


def test_a_real_step_is_timed(tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus")
    monkeypatch.setattr(step_costs, "TURN_SECONDS", 0.01)
    measure_step_costs([config(tmp_path, "a")], tmp_path / "step_costs.json", turns=1)
    assert json.loads((tmp_path / "step_costs.json").read_text())["models"]["a"]["seconds"] > 0


def test_a_study_is_read_with_its_costs(tmp_path):
    rows = fake_rows(2)
    for row in rows:
        append_row(tmp_path / "results.jsonl", row)
    assert read_study(tmp_path) == rows
    models = {"dense": {"seconds": 0.5, "joules": 4.0}, "switch-16": {"seconds": 0.75, "joules": None}}
    (tmp_path / "step_costs.json").write_text(json.dumps({"models": models}))
    read = {(row["name"], row["seed"]): row for row in read_study(tmp_path)}
    assert (read["dense", 1]["step_seconds"], read["dense", 1]["step_joules"]) == (0.5, 4.0)
    assert read["switch-16", 0]["step_joules"] is None
    assert "step_seconds" not in read["switch-4", 0]
    assert step_seconds(read["switch-16", 0]) == 0.75
    assert step_seconds(read["switch-4", 0]) == pytest.approx(0.2 * 1.2)
    frame = curve_frame([read["dense", 0]])
    assert frame.seconds.tolist() == (0.5 * frame.step).tolist()


def test_a_speed_up_in_seconds_goes_by_the_measured_steps(tmp_path):
    rows = [row | {"step_seconds": 1.0 if row["name"] == "dense" else 2.0} for row in fake_rows(2)]
    for summary in summarize(rows, "dense"):
        if summary.name != "dense":
            assert summary.step_time.mean == 2.0
            steps, seconds = (summary.speed_up[cost].ratio.mean for cost in ("step", "seconds"))
            assert seconds == pytest.approx(steps / 2)
