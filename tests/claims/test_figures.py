"""Figures of papers are written once and referred to."""

import pytest

from moe_jax.claims.figures import flat_figures, read_tables, refer
from moe_jax.configuration import ConfigError

TABLES = """
[walks]
title = "Walks"
[walks.values]
slow = "1.0"
"fast-2.0" = "2.5 / 3.5"
[walks.others.steps]
slow = "12"

[runs]
title = "Runs"
[runs.values]
slow = "{walks/slow}"
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tables.toml"
    path.write_text(TABLES)
    return path


def test_a_table_may_refer_to_another(path):
    tables = read_tables(path)
    assert tables["runs"] == {"title": "Runs", "values": {"slow": "1.0"}}
    assert tables["walks"]["others"] == {"steps": {"slow": "12"}}
    path.write_text(TABLES.replace("{walks/slow}", "{walks/slov}"))
    with pytest.raises(
        ConfigError, match=r"tables\.toml: figure is 'walks/slov'; accepted: .*did you mean 'walks/slow'"
    ):
        read_tables(path)


def test_a_text_refers_to_figures_and_may_leave_its_study_out(path):
    figures = flat_figures(read_tables(path))
    assert refer("{slow} against {fast-2.0/2}, {steps/slow} steps", figures, "walks") == "1.0 against 3.5, 12 steps"
    assert refer("{walks/fast-2.0} and {runs/slow}", figures) == "2.5 / 3.5 and 1.0"
    with pytest.raises(ConfigError, match=r"figure is 'slo'; accepted: .*did you mean 'slow'"):
        refer("{slo}", figures, "walks")
