"""The benchmark of scaling fits what it measured."""

import dataclasses
import json

import pytest

from experiments.benchmarks import layer_ways, scaling
from experiments.benchmarks.scaling import exponent, main, summary_row
from experiments.benchmarks.shapes import SHAPES


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(scaling, "SHAPE", SHAPES["tiny"])
    monkeypatch.setattr(scaling, "TOKENS", (16, 32, 64))
    monkeypatch.setattr(scaling, "FITTED_FROM", 32)
    monkeypatch.setattr(scaling, "EXPERTS", (2, 4))
    monkeypatch.setattr(scaling, "TOKENS_OF_EXPERTS", 32)


def test_the_exponent_of_a_power_law_is_its_own():
    assert exponent({size: 3.0 * size**1.25 for size in (4, 8, 64)}) == pytest.approx(1.25)


def test_tokens_are_fitted_from_where_overhead_is_small_and_experts_are_compared():
    spent = {(tokens, "way"): [1.0 + (tokens >= 4096) * tokens**1.1] * 3 for tokens in (1024, 4096, 65536)}
    spent |= {(tokens, "dense"): [tokens * 1e-6] for tokens in (1024, 4096, 65536)}
    row = summary_row("tokens", "way", spent)
    assert row["way"] == pytest.approx(1.1, abs=1e-3)
    assert row["dense"] == pytest.approx(1.0)
    spent = {(experts, name): [1.0, experts, 5.0] for experts in (8, 64, 256) for name in ("way", "dense")}
    assert summary_row("experts", "way", spent)["way"] == 1.0


def test_rows_are_printed_as_json_and_as_a_table(tiny, tmp_path, capsys):
    output = tmp_path / "rows"
    arguments = ["--repeats", "2", "--kernel", "ragged_dot", "--workload", "zipf", "--output", str(output)]
    assert main([*arguments, "--json"]) == 0
    assert capsys.readouterr().out == output.read_text()
    header, *rows = map(json.loads, output.read_text().splitlines())
    assert (header["way"], header["workload"]) == ("dropless-ragged_dot", "zipf")
    assert [row.get("tokens") for row in rows if row["sweep"] == "tokens"] == [16, 32, 64, None]
    assert [row.get("num_experts") for row in rows if row["sweep"] == "experts"] == [2, 4, None]
    for row in rows:
        if row["row"] == "size":
            assert row["to_dense"] > 0
            assert 0 < row["dense"]["least"] <= row["dense"]["median"] <= row["dense"]["most"]
    lines = scaling.table(header, rows).splitlines()
    assert "workload zipf" in lines[1]
    assert [line.split()[0] for line in lines if line.strip()[:2] in ("16", "32", "64")] == ["16", "32", "64"]
    assert any(line.startswith("exponent of 32 tokens and more: dropless-ragged_dot") for line in lines)
    assert any(line.startswith("most experts to fewest: dropless-ragged_dot") for line in lines)


def test_a_wrong_result_is_refused(tiny, monkeypatch, capsys):
    right = layer_ways.EXECUTIONS["dropless"]
    wrong = dataclasses.replace(right, run=lambda *arguments, **options: 1.01 * right.run(*arguments, **options))
    monkeypatch.setitem(layer_ways.EXECUTIONS, "dropless", wrong)
    assert main(["--repeats", "1", "--kernel", "ragged_dot"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("scaling: dropless-ragged_dot, gradient of ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "magic"], "--kernel is 'magic'; accepted: "),
        (["--workload", "even"], "--workload is 'even'; accepted: balanced"),
        (["--repeats", "0"], "--repeats is 0; accepted: an integer of at least 1"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scaling: {message}")
