import itertools
import math
import re

import matplotlib.image
import pytest
from matplotlib.colors import to_rgb

from moe_jax.configuration import ConfigError
from moe_jax.reports.comparison import headline, write_report
from moe_jax.reports.plots import plot_expert_load, plot_losses
from moe_jax.reports.tables import format_table
from moe_jax.results.rows import final_loss
from tests.results.fake_rows import fake_row, fake_rows


@pytest.mark.parametrize("seeds", [1, 3])
def test_report_is_complete(tmp_path, seeds):
    rows = fake_rows(seeds)
    path = write_report(rows, tmp_path, title="Switch", command="python -m sweep")
    text = path.read_text()
    assert text.startswith("# Switch\n\nThe baseline, dense, ended")
    for expected in ("`5eed`", "`abc1234`", "`python -m sweep`", "jax 0.10.2", "Imaginary 9000", "| switch-64 | 64 |"):
        assert expected in text
    assert not re.search(r"\b(nan|None)\b", text)
    assert ("±" in text.split("\n| dense |")[1].split("\n")[0]) == (seeds > 1)
    for name in re.findall(r"\]\((.+\.png)\)", text):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.05
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "load.png", "loss.png"]


def test_tables_are_markdown(tmp_path):
    text = write_report(fake_rows(2), tmp_path).read_text()
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_report_of_dense_models_has_no_load(tmp_path):
    assert "load.png" not in write_report([fake_row("dense")], tmp_path).read_text()
    assert plot_expert_load([fake_row("dense")]) is None


@pytest.mark.parametrize(("dense", "sparse"), [(1, 8), (2, 4), (5, 3), (5, 1)])
def test_lines_are_told_apart(dense, sparse):
    """Also where several dense models are compared, as in distillation."""
    rows = [fake_row("dense") | {"name": f"dense-{i}"} for i in range(dense)]
    rows += [fake_row("switch-4") | {"name": f"switch-{i}"} for i in range(sparse)]
    lines = plot_losses(rows, "dense-0").axes[0].get_lines()
    names = {row["name"] for row in rows}
    colours = {line.get_label(): to_rgb(line.get_color()) for line in lines if line.get_label() in names}
    assert colours.keys() == names
    for one, other in itertools.combinations(colours.values(), 2):
        assert math.dist(one, other) > 0.1


def test_a_report_needs_its_baseline(tmp_path):
    with pytest.raises(ConfigError, match="baseline is 'dense'"):
        write_report([fake_row("switch-4")], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_headline_gives_shares_of_the_baselines_costs():
    text = headline(fake_rows(3))
    assert "(mean over 3 seeds)" in text
    assert re.search(r"switch-64 reached that with 3[34]% of the baseline's steps, 3[34]% of its training FLOPs", text)
    assert "slower" not in text
    assert "7.5 times fewer" in text


def test_headline_admits_a_slower_and_a_worse_model():
    rows = fake_rows(2)
    for row in rows:
        for point in row["curve"]:
            point["seconds"] *= 5 if row["name"] == "switch-4" else 1
            point["validation_loss"] += 2 if row["name"] == "switch-64" else 0
    text = headline(rows)
    assert re.search(r"switch-4 reached that .* 4\d\d% of its seconds \(slower on this machine\)", text)
    assert "switch-64 reached that not at all" in text


def test_headline_before_the_sweep_is_done():
    assert headline([fake_row("switch-4")]) == "No run of dense has finished, so there is nothing to compare with yet."
    assert headline([fake_row("dense")]).endswith("(one seed).")


def test_terminal_table_is_aligned_and_compact():
    lines = format_table(fake_rows(3)).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 110
    assert lines[4].split()[0] == "switch-64"


def test_terminal_table_works_without_the_baseline():
    assert "switch-4" in format_table([fake_row("switch-4")])


def test_losses_are_plotted_against_three_costs_with_units():
    rows = fake_rows(2)
    panels = plot_losses(rows, "dense").axes
    assert [axes.get_xlabel() for axes in panels] == ["steps", "training FLOPs", "seconds"]
    assert panels[0].get_ylabel() == "validation loss (nats per token)"
    low, high = panels[0].get_ylim()
    assert low < min(map(final_loss, rows)) < max(map(final_loss, rows)) < high < rows[0]["curve"][0]["validation_loss"]


def test_the_legend_of_two_panels_is_no_wider_than_they_are():
    names = ["dense-0.1", "switch-0.1", "switch-0.2", "switch-0.3", "switch-0.1-expert-0.4"]
    figure = plot_losses([fake_row("switch-4") | {"name": name} for name in names], "dense-0.1", ("step", "flops"))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert 0 <= legend.get_window_extent().x0 < legend.get_window_extent().x1 <= figure.bbox.x1


def test_a_diverged_run_can_be_plotted_and_reported(tmp_path):
    rows = fake_rows(2)
    for point in rows[1]["curve"][3:]:
        point["validation_loss"] = point["bits_per_byte"] = float("nan")
    assert "switch-4 reached that with 1 of 2 seeds only" in write_report(rows, tmp_path).read_text()


def test_load_panels_show_the_last_sparse_layer_of_each_sparse_model():
    rows = fake_rows(2)
    for row in rows:
        for point in row["curve"]:
            if point["load"]:
                point["load"]["layer_11"] = point["load"]["layer_1"]
    titles = [axes.get_title() for axes in plot_expert_load(rows).axes[:3]]
    assert titles == [f"switch-{experts}\nlayer 11, seed 0" for experts in (4, 16, 64)]


def test_many_load_panels_stand_in_several_lines():
    rows = [fake_row("switch-16") | {"name": f"experts-attention-bfloat16-{number}"} for number in range(5)]
    figure = plot_expert_load(rows)
    *panels, bar = figure.axes
    assert [axes.get_title().partition("\n")[0] for axes in panels] == [row["name"] for row in rows]
    assert bar.get_ylabel() == "load / even share"
    places = [axes.get_subplotspec() for axes in panels]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in panels[:4]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
