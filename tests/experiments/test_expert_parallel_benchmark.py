"""The benchmark of expert parallelism: its bytes are those counted by hand, and it prints what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import expert_parallel, timing
from experiments.benchmarks.expert_parallel import Shape, byte_rows, main

# 16 tokens of 8 float32 on each device, two choices of 8 experts: 32 rows of 32 bytes to send.
TINY = Shape(16, 8, 4, 8, 2)
STRATEGIES = ["all_to_all", "gather", "dropless"]


@pytest.fixture
def tiny(monkeypatch):
    """Two devices and little to do."""
    monkeypatch.setattr(expert_parallel, "DEVICES", 2)
    monkeypatch.setattr(expert_parallel, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(expert_parallel, "TIMED", TINY)


def test_bytes_are_those_counted_by_hand(monkeypatch):
    monkeypatch.setattr(expert_parallel, "SHAPES", {"tiny": TINY})
    rows = {(row["strategy"], row["load"]): row for row in byte_rows()}
    sent = {key: row["sent"] * TINY.tokens for key, row in rows.items()}
    # 7 of 8 rows leave, and come back.
    assert {row["least"] for row in rows.values()} == {2 * 28 * 32 / 16}
    # 8 experts with 5 seats each, 1.25 * 32.
    assert sent.pop(("all_to_all", "any")) == 2 * 35 * 32
    # Buffers of 6 rows, 1.5 * 4, or 16; with these the counts of 8 experts, and the largest of them over all.
    numbers = 7 * 4 + 2 * 4 * 7 / 8
    assert sent.pop(("dropless", "near even")) == 2 * 7 * 6 * 32 + numbers
    assert sent.pop(("dropless", "uneven")) == 2 * 7 * 16 * 32 + numbers
    # 16 tokens to 7 others and back; besides, a few numbers of 4 bytes or less for each of 32 choices.
    numbers = sent.pop(("gather", "any")) - 2 * 7 * 16 * 32
    assert 7 * 32 * 4 <= numbers <= 5 * 7 * 32 * 4
    assert not sent
    for row in rows.values():
        assert row["ratio"] == row["sent"] / row["least"]
    assert rows["all_to_all", "any"]["ratio"] == 1.25


def test_rows_are_printed_as_json_and_written(tiny, tmp_path, capsys):
    output = tmp_path / "folder" / "rows.jsonl"
    assert main(["--repeats", "2", "--json", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert output.read_text() == printed
    header, *rows = map(json.loads, printed.splitlines())
    assert header["row"] == "header"
    assert header["repeats"] == 2
    assert {"jax", "python"} <= header["versions"].keys()
    assert {"cpu", "cores", "devices"} <= header["host"].keys()
    counted = [row for row in rows if row["row"] == "bytes"]
    # On two devices the long buffers may be as short as the others, which leaves one case.
    assert list(dict.fromkeys(row["strategy"] for row in counted)) == STRATEGIES
    timed = [row for row in rows if row["row"] == "time"]
    assert [(row["strategy"], row["devices"]) for row in timed] == [(s, d) for s in STRATEGIES for d in (1, 2)]
    assert len(counted) + len(timed) == len(rows)
    for row in timed:
        assert 0 < row["ms"]["least"] <= row["ms"]["median"] <= row["ms"]["most"]
        assert 0 < row["overhead"]["least"] <= row["overhead"]["median"] <= row["overhead"]["most"]
        if row["devices"] == 1:
            assert set(row["overhead"].values()) == {1.0}


def test_overhead_is_over_as_many_times_one_device(tiny, monkeypatch):
    """A device takes 3 seconds, two take 9, whatever the strategy; one with long buffers says so."""
    elapsed = {"now": 0.0}

    def layer_step(strategy, shape, devices):
        def step():
            elapsed["now"] += {1: 3.0, 2: 9.0}[devices]
            return (strategy, devices) == ("dropless", 2)

        return step

    monkeypatch.setattr(expert_parallel, "layer_step", layer_step)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: elapsed["now"])
    rows = {(row["strategy"], row["devices"]): row for row in expert_parallel.time_rows(3)}
    for strategy in STRATEGIES:
        assert rows[strategy, 1]["overhead"]["median"] == 1.0
        assert rows[strategy, 2]["overhead"]["median"] == 1.5
        assert rows[strategy, 2]["ms"] == {"median": 9000.0, "least": 9000.0, "most": 9000.0}
    assert [key for key, row in rows.items() if row["load"] == "uneven"] == [("dropless", 2)]


def test_the_table_has_a_line_for_each_row(monkeypatch, capsys):
    spread = {"median": 1.25, "least": 1.0, "most": 2.0}
    names = {"layer": "tiny", "strategy": "dropless", "load": "uneven"}
    counted = {"row": "bytes", **names, "sent": 12345.6, "least": 10000.0, "ratio": 1.23456}
    timed = {"row": "time", **names, "devices": 4, "ms": spread, "overhead": spread}
    monkeypatch.setattr(expert_parallel, "byte_rows", lambda: [counted])
    monkeypatch.setattr(expert_parallel, "time_rows", lambda repeats: [timed])
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cores" in lines[0]
    assert "; jax " in lines[0]
    assert "; revision " in lines[0]
    split = [line.split() for line in lines]
    assert ["tiny", "dropless", "uneven", "12,346", "10,000", "1.235"] in split
    assert ["dropless", "4", "uneven", "1.2", "1.25", "(1.00,", "2.00)"] in split
    assert any("repeats: 10; each device: tokens 512, model_dim 256" in line for line in lines)


def test_no_repeats_are_refused(capsys):
    assert main(["--repeats", "0"]) == 2
    assert "expert_parallel: --repeats is 0; accepted: an integer of at least 1" in capsys.readouterr().err


def test_more_devices_than_there_are_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(expert_parallel, "DEVICES", 16)
    assert main([]) == 2
    assert "at most 8 devices" in capsys.readouterr().err


def test_devices_are_forced_whatever_the_environment_says():
    program = (
        "import jax\nfrom experiments.benchmarks.expert_parallel import force_devices\n"
        "force_devices()\nprint(jax.device_count(), jax.default_backend())"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["8", "cpu"]
