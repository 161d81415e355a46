"""Tables of a paper beside ours: each figure against a computation by hand, diverged runs apart."""

import dataclasses
import re

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from moe_jax.configuration import ConfigError
from moe_jax.reports.paper import PaperTable, paper_markdown, write_paper_report
from moe_jax.results.notes import table_digest
from moe_jax.results.rows import append_row, final_loss
from tests.results.fake_rows import fake_row, fake_rows

TABLE = PaperTable(
    title="More experts",
    place="Table 3",
    figures="negative log perplexity after 3.5k steps, higher is better",
    values={"dense": "-1.731", "switch-4": "-1.6", "switch-16": "diverged", "switch-64": "-1.5"},
    baseline="dense",
)


def cells(text, name):
    """The cells of a model's line."""
    (line,) = re.findall(rf"^\| {name} \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_figure_stands_beside_the_paper_s():
    rows = fake_rows(3)
    text = paper_markdown(rows, TABLE)
    ours = [-final_loss(row) for row in rows if row["name"] == "switch-4"]
    base = [-final_loss(row) for row in rows if row["name"] == "dense"]
    change = np.subtract(ours, base)
    low, high = stats.t.interval(0.95, 2, change.mean(), stats.sem(change))
    assert cells(text, "switch-4") == [
        "switch-4",
        "-1.6",
        f"{np.mean(ours):.4f} ± {stats.sem(ours):.4f}",
        f"{change.mean():+.4f} [{low:+.4f}, {high:+.4f}]",
        "1.000",
        "3",
        "-",
    ]
    assert cells(text, "dense")[3] == "-"
    assert re.findall(r"^\| ([\w-]+) \|", text, re.MULTILINE) == ["model", "---", *TABLE.values]


def test_runs_that_diverged_are_counted_and_not_averaged():
    rows = fake_rows(3)
    lost = [row for row in rows if row["name"] == "switch-16" and row["seed"] < 2]
    for row in lost:
        row |= {"diverged": True, "curve": row["curve"][:1]}
    text = paper_markdown(rows, TABLE)
    (kept,) = (row for row in rows if row["name"] == "switch-16" and row not in lost)
    assert cells(text, "switch-16")[2] == f"{-final_loss(kept):.4f}"
    assert cells(text, "switch-16")[5:] == ["3", "2"]
    for row in rows:
        if row["name"] == "switch-64":
            row |= {"diverged": True, "curve": []}
    assert cells(paper_markdown(rows, TABLE), "switch-64")[2:] == ["-", "-", "1.000", "3", "3"]


def test_another_metric_is_a_score():
    rows = [row | {"scores": {"exact_match": 0.1 * row["seed"]}} for row in fake_rows(2)]
    table = dataclasses.replace(TABLE, metric="exact_match")
    text = paper_markdown(rows, table)
    assert "ours, exact match" in text
    assert cells(text, "switch-4")[2] == "0.0500 ± 0.0500"


def test_nats_are_the_loss_s_unit_alone(tmp_path):
    rows = [row | {"scores": {"exact_match": 0.1 * row["seed"]}} for row in fake_rows(2)]
    said = {
        metric: write_paper_report(rows, tmp_path, dataclasses.replace(TABLE, metric=metric), "").read_text()
        for metric in ("loss", "exact_match")
    }
    after = "on validation text after the last step"
    assert f"- ours, negative log perplexity: {after}, nats per target token, higher is better" in said["loss"]
    assert f"- ours, exact match: {after}, higher is better" in said["exact_match"]


def test_columns_are_explained(tmp_path):
    table = dataclasses.replace(TABLE, others={"step_speed_up": {"switch-64": "7.5"}, "parameters": {}})
    rows = fake_rows(2)
    text = write_paper_report(rows, tmp_path, table, "").read_text()
    explained = re.findall(r"^- ([^:]+): .+\.$", text, re.MULTILINE)
    assert explained[:5] == ["ours, negative log perplexity", "Δ", "speed-up in steps", "FLOPs", "diverged"]
    assert "- diverged: no seed did." in text
    rows[1] |= {"diverged": True}
    assert "- diverged: seeds that diverged" in write_paper_report(rows, tmp_path, table, "").read_text()


def test_the_report_is_complete(tmp_path):
    rows = fake_rows(2)
    for row in rows:
        append_row(tmp_path / "results.jsonl", row)
    digest = table_digest(tmp_path / "results.jsonl")
    (tmp_path / "notes.md").write_text(f"On the table with digest `{digest}`.\n\n- switch-64: unknown\n")
    path = write_paper_report(rows, tmp_path, TABLE, "python -m study")
    text = path.read_text()
    for expected in ("# More experts", "Table 3: negative log", "`python -m study`", "`5eed`", "- switch-64: unknown"):
        assert expected in text
    assert not re.search(r"\b(nan|None)\b", text)
    for name in re.findall(r"\]\((.+\.png)\)", text):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.05
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md",
        "load.png",
        "loss.png",
        "notes.md",
        "results.jsonl",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([fake_row("dense"), fake_row("switch-4") | {"name": "mlp"}], "name is 'mlp'; accepted: dense, switch-16"),
        ([fake_row("switch-4")], "baseline is 'dense'; accepted: switch-4"),
        ([fake_row("dense"), fake_row("switch-4", digest="other")], "accepted: rows of one corpus"),
    ],
)
def test_rows_that_do_not_belong_are_refused(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        write_paper_report(rows, tmp_path, TABLE, "")
    assert list(tmp_path.iterdir()) == []


def test_seconds_are_drawn_where_steps_were_timed_by_turns(tmp_path):
    """Those of the runs themselves, which may have been trained side by side, are not."""
    rows = fake_rows(2)
    write_paper_report(rows, tmp_path, TABLE, "make it")
    assert "![Validation loss over steps, training FLOPs](loss.png)" in (tmp_path / "README.md").read_text()
    write_paper_report([row | {"step_seconds": 0.1} for row in rows], tmp_path, TABLE, "make it")
    assert "![Validation loss over steps, training FLOPs, seconds](loss.png)" in (tmp_path / "README.md").read_text()
