"""What stands beside a paper's further figures: each against a computation by hand."""

import dataclasses
import re

import numpy as np
import pytest
from scipy import stats

from moe_jax.configuration import ConfigError
from moe_jax.reports.paper import PaperTable, paper_markdown
from moe_jax.reports.paper_measures import MEASURES, Compared
from moe_jax.results.rows import final_loss
from moe_jax.results.summary import cost_to_reach, summarize
from moe_jax.statistics.intervals import fieller_interval
from tests.results.fake_rows import SPEED, fake_rows


def compared(name, rows, teacher=None):
    runs = {model: {row["seed"]: row for row in rows if row["name"] == model} for model in SPEED}
    return Compared(name, "dense", teacher, runs, lambda row: -final_loss(row))


def timed(rows):
    return [row | {"step_seconds": 0.5 if row["name"] == "dense" else 0.75} for row in rows]


def cell(measure, name, rows, teacher=None):
    return MEASURES[measure].ours(compared(name, rows, teacher))


def test_examples_per_second_are_those_of_steps_timed_by_turns():
    rows = fake_rows(2)
    for row in rows:
        row["config"]["data"] = {"batch_size": 600}
    assert cell("examples_per_second", "dense", rows) == "-"
    assert cell("examples_per_second", "dense", timed(rows)) == "1,200"
    assert cell("examples_per_second", "switch-4", timed(rows)) == "800"


@pytest.mark.parametrize(("measure", "cost"), [("step_speed_up", "step"), ("seconds_speed_up", "seconds")])
def test_speed_ups_are_those_of_summaries(measure, cost):
    rows = timed(fake_rows(3))
    (expected,) = [s.speed_up[cost].ratio for s in summarize(rows, "dense") if s.name == "switch-16"]
    low, high = expected.interval
    assert cell(measure, "switch-16", rows) == f"{expected.mean:.2f} [{low:.2f}, {high:.2f}]"
    assert cell(measure, "dense", rows) == "-"


def test_a_loss_that_some_seeds_do_not_reach_has_no_speed_up():
    rows = fake_rows(2)
    for row in rows:
        if row["name"] == "switch-4":
            for point in row["curve"] if row["seed"] else ():
                point["validation_loss"] += 5
    assert cell("step_speed_up", "switch-4", rows) == "1 of 2 seeds"
    assert cell("seconds_to_baseline", "switch-4", rows) == "1 of 2 seeds"
    for row in rows:
        if row["name"] == "switch-4":
            for point in row["curve"]:
                point["validation_loss"] += 5
    assert cell("step_speed_up", "switch-4", rows) == "not reached"


def test_seconds_to_the_baseline_s_final_loss():
    rows = timed(fake_rows(3))
    base = {row["seed"]: final_loss(row) for row in rows if row["name"] == "dense"}
    own = [row for row in rows if row["name"] == "switch-64"]
    seconds = [cost_to_reach(row, base[row["seed"]], "seconds") for row in own]
    assert seconds[0] == 0.75 * cost_to_reach(own[0], base[0], "step")
    assert cell("seconds_to_baseline", "switch-64", rows) == f"{np.mean(seconds):.0f} ± {stats.sem(seconds):.0f}"


def test_loss_at_equal_time_is_where_the_quickest_model_ends():
    rows = timed(fake_rows(2))
    # The dense model ends after 1000 steps of 0.5 s; the others have made two thirds of theirs by then.
    own = [row for row in rows if row["name"] == "switch-4"]
    losses = [
        np.interp(1000 * 2 / 3, [p["step"] for p in row["curve"]], [p["validation_loss"] for p in row["curve"]])
        for row in own
    ]
    assert cell("loss_at_equal_time", "switch-4", rows) == f"{-np.mean(losses):.4f} ± {stats.sem(losses):.4f}"
    ends = [final_loss(row) for row in rows if row["name"] == "dense"]
    assert cell("loss_at_equal_time", "dense", rows).startswith(f"{-np.mean(ends):.4f}")
    assert cell("loss_at_equal_time", "dense", fake_rows(2)) == "-"


def test_standard_deviation_is_over_seeds():
    rows = fake_rows(4)
    values = [final_loss(row) for row in rows if row["name"] == "switch-4"]
    assert cell("standard_deviation", "switch-4", rows) == f"{np.std(values, ddof=1):.4f}"
    assert cell("standard_deviation", "switch-4", fake_rows(1)) == "-"


def test_a_share_of_the_teacher_s_gain():
    rows = fake_rows(3)
    losses = {name: [final_loss(row) for row in rows if row["name"] == name] for name in SPEED}
    parts, wholes = (np.subtract(losses["dense"], losses[name]) for name in ("switch-4", "switch-64"))
    low, high = fieller_interval(parts.tolist(), wholes.tolist())
    expected = f"{parts.mean() / wholes.mean():.0%} [{low:.0%}, {high:.0%}]"
    assert cell("share_of_gain", "switch-4", rows, "switch-64") == expected
    assert cell("share_of_gain", "switch-4", fake_rows(1), "switch-64").endswith("%")
    assert cell("share_of_gain", "switch-4", rows) == "-"


def test_of_a_teacher_that_gains_nothing_there_is_no_share():
    rows = fake_rows(2)
    for row in rows:
        if row["name"] == "switch-64":
            row["curve"][-1]["validation_loss"] = 9.0
    assert cell("share_of_gain", "switch-4", rows, "switch-64") == "the teacher gains nothing"


def test_of_a_teacher_that_may_gain_nothing_there_is_no_share():
    rows = fake_rows(3)
    dense = iter([final_loss(row) for row in rows if row["name"] == "dense"])
    gains = iter((1.0, 0.1, -0.5))
    for row in rows:
        if row["name"] == "switch-64":
            row["curve"][-1]["validation_loss"] = next(dense) - next(gains)
    assert cell("share_of_gain", "switch-4", rows, "switch-64") == "no certain gain to share"


def test_parameters_and_what_a_student_does_without():
    rows = fake_rows(1)
    assert cell("parameters", "switch-4", rows) == f"{1_800_000 + 4 * 524_288:,}"
    share = 1 - (1_800_000 + 4 * 524_288) / (1_800_000 + 64 * 524_288)
    assert cell("compression", "switch-4", rows, "switch-64") == f"{share:.0%}"
    assert cell("compression", "switch-4", rows) == "-"


def test_each_measure_stands_beside_the_paper_s_figure():
    table = PaperTable(
        title="",
        place="Table 1",
        figures="",
        values=dict.fromkeys(SPEED, "-1"),
        baseline="dense",
        others={"step_speed_up": {"switch-64": "7.5"}, "share_of_gain": {"switch-4": "3%"}},
        teachers={"switch-4": "switch-64"},
    )
    header, _, *lines = paper_markdown(fake_rows(2), table).splitlines()
    titles = [title.strip() for title in header.strip("|").split("|")]
    assert titles[4:8] == ["speed-up in steps: paper", "ours", "share of the teacher's gain: paper", "ours"]
    cells = {line.split()[1]: [cell.strip() for cell in line.strip("|").split("|")][4:8] for line in lines}
    assert cells["switch-64"][0] == "7.5"
    assert cells["switch-4"][0] == "-"
    assert cells["switch-4"][2] == "3%"
    assert re.match(r"\d+% \[", cells["switch-4"][3])
    for field, value, message in (
        ("others", {"speed": {}}, "others is 'speed'"),
        ("others", {"step_speed_up": {"mlp": "1"}}, "others.step_speed_up is 'mlp'"),
        ("baseline", "mlp", "baseline is 'mlp'"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(table, **{field: value})
