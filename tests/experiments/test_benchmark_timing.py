"""Turns are taken, what is slow is not done again, and what a benchmark says is printed as it was asked."""

import json

import pytest

from experiments.benchmarks import timing
from experiments.benchmarks.timing import BenchmarkError, benchmark_parser, ratio, run_benchmark, spread, take_turns
from moe_jax.configuration import ConfigError


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a work says so."""
    elapsed = {"now": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: elapsed["now"])
    return elapsed


def test_all_take_turns_and_the_first_rounds_do_not_count(clock):
    """What was quick is done once more first, and that is not timed."""
    calls = []

    def work(name, *seconds):
        remaining = list(seconds)

        def run():
            calls.append(name)
            clock["now"] += remaining.pop(0)

        return run

    works = {"a": work("a", 9, 8, 1, 5, 2, 5, 3), "b": work("b", 7, 7, 2, 6, 2, 6, 9)}
    assert take_turns(works, 3) == {"a": [1, 2, 3], "b": [2, 2, 9]}
    assert calls == ["a", "b"] * 3 + ["a", "a", "b", "b"] * 2


def test_what_tries_patience_is_timed_once(clock):
    def slow():
        clock["now"] += 30.0

    spent = take_turns({"slow": slow, "fast": lambda: None}, 3, patience=20.0)
    assert spent == {"slow": [30.0], "fast": [0.0, 0.0, 0.0]}


def test_ratios_are_within_a_round():
    assert ratio([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]) == 2.0
    assert ratio([30.0], [3.0, 1.0, 1.0]) == 10.0
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def run(arguments, measure):
    def table(header, rows):
        return "\n".join([header["row"], *(row["row"] for row in rows)])

    return run_benchmark("name", benchmark_parser("what", 5).parse_args(arguments), measure, table)


def test_rows_are_printed_and_written(tmp_path, capsys):
    output = tmp_path / "folder" / "rows"
    assert run(["--output", str(output)], lambda: ({"row": "header"}, [{"row": "one"}])) == 0
    assert capsys.readouterr().out == output.read_text() == "header\none\n"
    assert run(["--json"], lambda: ({"row": "header"}, [{"row": "one"}])) == 0
    header, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert header["load_before"] >= 0
    assert row == {"row": "one"}


@pytest.mark.parametrize(("error", "status"), [(ConfigError, 2), (BenchmarkError, 1)])
def test_errors_are_one_line_and_nothing_is_written(error, status, tmp_path, capsys):
    def measure():
        raise error("what is wrong")

    assert run(["--output", str(tmp_path / "rows")], measure) == status
    printed = capsys.readouterr()
    assert printed.err == "name: what is wrong\n"
    assert not printed.out
    assert not list(tmp_path.iterdir())


def test_no_repeats_are_refused(capsys):
    assert run(["--repeats", "0"], None) == 2
    assert "name: --repeats is 0; accepted: an integer of at least 1" in capsys.readouterr().err
