"""Options of the studies' commands: what is left out, what is refused, and what a report repeats."""

from pathlib import Path

import pytest

from moe_jax.study.command_line import given, output_folder, study_parser
from moe_jax.study.study import Model, Preset, Study


@pytest.fixture
def parser():
    presets = {name: Preset(str, 1) for name in ("quick", "laptop")}
    walks = Study(name="walks", models=(Model("slow", "slow", baseline="slow"),), presets=presets, report=str)
    return study_parser("walks", "Walks of any length.", [walks])


def test_nothing_need_be_said(parser):
    options = parser.parse_args([])
    assert (options.preset, options.seeds, options.output, options.jobs) == ("laptop", None, None, None)
    assert given(options) == ["--preset", "laptop"]


def test_a_report_s_command_repeats_what_decides_the_results(parser):
    """And neither the folder nor the runs at a time; read again, it says the same."""
    decides = ["--preset", "quick", "--seeds", "2", "--models", "a", "b", "--set", "steps=3", "--set", "x.y=None"]
    options = parser.parse_args([*decides, "--output", "there", "--jobs", "3"])
    assert options.output == Path("there")
    assert given(options) == decides
    assert given(parser.parse_args(given(options))) == decides


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "²"])
def test_a_number_below_one_is_refused(parser, capsys, option, text):
    with pytest.raises(SystemExit):
        parser.parse_args([f"{option}={text}"])
    assert f"{option}: {text}; accepted: an integer of at least 1" in capsys.readouterr().err


def test_a_preset_that_is_not_there_is_refused(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--preset", "gpu"])
    assert "'gpu' (choose from" in capsys.readouterr().err


def test_results_go_where_help_says(parser):
    assert "runs/walks-PRESET" in parser.format_help()
    assert output_folder("walks", parser.parse_args(["--preset", "quick"])) == Path("runs/walks-quick")
    assert output_folder("walks", parser.parse_args(["--output", "there"])) == Path("there")
