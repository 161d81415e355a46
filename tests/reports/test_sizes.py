"""Sizes, their energy and their report: each figure against a computation by hand."""

import re

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_jax.configuration import ConfigError
from moe_jax.reports.size_plots import plot_final_losses, plot_size_losses
from moe_jax.reports.sizes import findings, write_size_report
from moe_jax.results.rows import final_loss
from moe_jax.results.sizes import by_size, energy_of_training, energy_speed_up, meters
from moe_jax.results.summary import cost_to_reach
from tests.results.fake_rows import by_label, fake_scores, fake_size_rows

COUNTER = "NVML, GPUs"
WORDS = {"title": "Sizes", "paper": "What the paper says.", "watts": 15.0, "counter": COUNTER, "command": "python x"}


def cells(text, name, section):
    """The cells of a model's line in a section."""
    (part,) = re.findall(rf"^##+ {section}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    (line,) = re.findall(rf"^\| {name} \|.*$", part, re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def with_interval(values, form):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return f"{np.mean(values):{form}} [{low:{form}}, {high:{form}}]"


def of(rows, name):
    return [row for row in rows if row["name"] == name]


@given(st.randoms())
def test_sizes_go_from_small_to_large_and_start_with_the_dense_model(random):
    rows = fake_size_rows(1)
    random.shuffle(rows)
    sizes = by_size(by_label(rows))
    assert [size.label for size in sizes] == ["tiny", "small", "medium"]
    for size in sizes:
        names = [f"dense-{size.label}", *(f"glam-{size.label}-{experts}" for experts in (4, 16, 64))]
        assert [summary.name for summary in size.summaries] == names
        assert size.dense.difference is None
        assert all(summary.difference is not None for summary in size.sparse)


@pytest.mark.parametrize("wrong", ["none", "two"])
def test_a_size_has_one_dense_model(wrong):
    rows = fake_size_rows(1, ["small"])
    if wrong == "two":
        rows += fake_size_rows(1, ["other"])
    else:
        rows = rows[1:]
    with pytest.raises(ConfigError, match=r"dense models is .*; accepted: one among .*glam-small-4"):
        by_size({"small": rows})


@given(watts=st.floats(1, 1000), joules=st.floats(0.1, 100))
def test_energy_is_that_of_the_steps(watts, joules):
    rows = fake_size_rows(2, ["small"])
    for row in rows:
        row["step_joules"] = joules
    stated, counted = meters(rows, watts, COUNTER)
    dense = of(rows, "dense-small")
    assert energy_of_training(dense, stated) == pytest.approx(watts * dense[0]["step_seconds"] * 1000)
    assert energy_of_training(dense, counted) == pytest.approx(joules * 1000)
    assert counted.name == COUNTER


def test_what_no_counter_saw_is_stated_alone():
    rows = fake_size_rows(1)
    assert [meter.name for meter in meters(rows, 15.0, None)] == ["15 W assumed"]
    rows[3]["step_joules"] = None
    assert len(meters(rows, 15.0, COUNTER)) == 1
    with pytest.raises(ConfigError, match=r"watts is 0.0; accepted: a positive number"):
        meters(rows, 0.0, None)


def test_a_speed_up_in_energy_is_that_of_the_joules_spent():
    rows = fake_size_rows(3)
    medium = by_size(by_label(rows))[-1]
    stated, counted = meters(rows, 15.0, COUNTER)
    ratios = []
    for own, dense in zip(of(rows, "glam-medium-16"), of(rows, "dense-medium"), strict=True):
        steps = [cost_to_reach(row, final_loss(dense), "step") for row in (dense, own)]
        ratios.append(steps[0] * 28.0 / (steps[1] * 56.0))
    found = energy_speed_up(medium, "glam-medium-16", counted).ratio
    assert found.mean == pytest.approx(np.mean(ratios))
    (summary,) = [s for s in medium.sparse if s.experts == 16]
    assert energy_speed_up(medium, "glam-medium-16", stated).ratio.mean == pytest.approx(
        summary.speed_up["seconds"].ratio.mean
    )
    assert energy_speed_up(by_size(by_label(rows[:4]))[0], "glam-medium-16", counted) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_report_is_complete(tmp_path, seeds):
    rows = fake_size_rows(seeds)
    path = write_size_report(by_label(rows), fake_scores(rows), tmp_path, **WORDS)
    text = path.read_text()
    assert text.startswith("# Sizes\n\nWhat the paper says.\n\n")
    assert not re.search(r"\b(nan|None)\b", text)
    for expected in ("`5eed`", "`python x`", "15 W assumed", COUNTER, "one-shot", "few-shot (4)"):
        assert expected in text
    for name in re.findall(r"\]\((.+\.png)\)", text):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.05
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "cost.png", "size.png"]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_figures_of_the_report(tmp_path):
    rows = fake_size_rows(3)
    scores = fake_scores(rows)
    for score in scores:
        score["accuracy"] += 0.05 * (score["seed"] == 2 and score["name"] == "glam-small-64")
    text = write_size_report(by_label(rows), scores, tmp_path, **WORDS).read_text()
    own, dense = ([final_loss(row) for row in of(rows, name)] for name in ("glam-small-64", "dense-small"))
    quality = cells(text, "glam-small-64", "Quality")
    assert quality[6] == f"{np.mean(own):.4f} ± {stats.sem(own):.4f}"
    assert quality[8] == with_interval(np.subtract(own, dense), "+.4f")
    assert cells(text, "glam-small-64", "Energy")[1:] == ["720.0", "1.80 [1.80, 1.80]", "10.80", "28.00"]
    accuracies = {
        name: [s["accuracy"] for s in scores if (s["name"], s["task"], s["shots"]) == (name, "last_word", 1)]
        for name in ("glam-small-64", "dense-small")
    }
    found = cells(text, "glam-small-64", "last_word")
    assert found[3] == with_interval(accuracies["glam-small-64"], ".1%")
    assert found[4] == with_interval(np.subtract(*accuracies.values()), "+.1%")
    assert cells(text, "dense-small", "last_word")[4] == "-"
    assert "200 questions (multiple choice, chance 25%)" in text
    assert "room for 0.8 of 1 and 3.0 of 4 on average" in text


def said(rows, scores=()):
    return findings(by_size(by_label(rows)), scores, meters(rows, 15.0, None)[0])


def test_findings_say_what_the_rows_say():
    rows = fake_size_rows(3)
    text = said(rows, fake_scores(rows))
    assert "small (1.80 M active parameters): dense-small ends with 1.7689 nats per token" in text
    assert "the best sparse model, glam-small-64, with 1.3568, a difference of -0.4122 [" in text
    assert "with 33% of its tokens, 33% of its training FLOPs, 59% of its seconds and 59% of its energy (15 W" in text
    assert "9 of 9 sparse models reached the final loss" in text
    assert "9 of them with fewer tokens" in text
    assert "the mean loss falls with every step in tiny, small, medium." in text
    assert "the gain grows with size" in text
    assert "22.0%/25.0%/34.0% of dense-medium and 32.0%/35.0%/44.0% of glam-medium-64" in text


def shift(rows, name, by, seed=None):
    for row in of(rows, name):
        for point in row["curve"]:
            point["validation_loss"] += by if seed in (None, row["seed"]) else 0.0


def test_findings_admit_what_does_not_agree():
    rows = fake_size_rows(3)
    shift(rows, "glam-tiny-64", 1.0)
    for experts in (4, 16, 64):
        shift(rows, f"glam-medium-{experts}", 2.0)
    text = said(rows)
    assert "the best sparse model, glam-tiny-16," in text
    assert "It reached the dense model's loss with no seed." in text
    assert "5 of 9 sparse models reached" in text
    assert "with every step in small; not with every step in tiny, medium" in text
    assert "Questions" not in text


def test_the_gain_is_compared_between_the_smallest_and_the_largest_size():
    rows = fake_size_rows(3)
    shift(rows, "glam-medium-64", 0.3)
    assert "the gain shrinks with size" in said(rows)
    rows = fake_size_rows(3)
    shift(rows, "glam-medium-64", 0.3, seed=1)
    assert "3 seeds cannot tell whether the gain grows" in said(rows)
    assert "one seed, which says nothing of chance" in said(fake_size_rows(1))


def test_sizes_are_compared_at_the_most_experts_that_all_have():
    rows = [row for row in fake_size_rows(3) if row["name"] not in ("glam-medium-4", "glam-medium-64")]
    assert "Scale: 16 experts lower the loss" in said(rows)
    shift(rows, "glam-medium-16", 0.3)
    assert "the gain shrinks with size" in said(rows)


def test_one_size_alone_has_no_comparison_of_sizes(tmp_path):
    rows = fake_size_rows(2, ["small"])
    text = write_size_report(by_label(rows), [], tmp_path, **WORDS).read_text()
    assert "Scale" not in text
    assert "size.png" not in text
    assert "Few-shot" not in text
    assert not (tmp_path / "size.png").exists()


def test_without_a_counter_the_report_says_so(tmp_path):
    text = write_size_report(by_label(fake_size_rows(1)), [], tmp_path, **WORDS | {"counter": None}).read_text()
    assert "No energy was counted" in text
    assert COUNTER not in text


def test_losses_are_drawn_against_four_costs():
    rows = fake_size_rows(2)
    figure = plot_size_losses(by_size(by_label(rows)), meters(rows, 15.0, COUNTER)[1])
    labels = ["training FLOPs", "training tokens", "seconds of training", f"energy of training ({COUNTER})"]
    assert [axes.get_xlabel() for axes in figure.axes] == labels
    for axes in figure.axes:
        assert len(axes.lines) == 12
        assert axes.get_xscale() == "log"
    # One style for a size, one colour for a number of experts, whatever the size.
    looks = {(line.get_linestyle(), line.get_color()) for line in figure.axes[0].lines}
    assert len(looks) == 12
    assert len({style for style, _ in looks}) == 3
    last = figure.axes[3].lines[0]
    assert last.get_xdata()[-1] == pytest.approx(7.0 * 1000)
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == ["dense", "4 experts", "16 experts", "64 experts", "tiny", "small", "medium"]


def test_final_losses_are_drawn_over_the_flops_of_a_token():
    rows = fake_size_rows(3)
    losses, gains = plot_final_losses(by_size(by_label(rows))).axes
    assert len(losses.containers) == 4
    assert len(gains.containers) == 3
    line, _, (bars,) = gains.containers[0].lines
    differences = np.subtract(
        *([final_loss(row) for row in of(rows, name)] for name in ("glam-medium-4", "dense-medium"))
    )
    assert line.get_ydata()[-1] == pytest.approx(differences.mean())
    ends = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    np.testing.assert_allclose(bars.get_segments()[-1][:, 1], ends)
    assert [label.get_text() for label in losses.get_xticklabels()] == [
        "tiny\n12.00 M",
        "small\n24.00 M",
        "medium\n48.00 M",
    ]
