"""The benchmark of a layer times only what is right, and says what it cannot time."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import hugging_face, layer_ways, moe_layer
from experiments.benchmarks.layer_ways import (
    WrongResultError,
    check_runner,
    draw_problem,
    drop_rate,
    make_runner,
    our_ways,
    with_fewer_tokens,
)
from experiments.benchmarks.moe_layer import main
from experiments.benchmarks.shapes import SHAPES
from moe_jax.experts.padded import PADDED, padded

TINY = SHAPES["tiny"]
QUICK = ["--shapes", "tiny", "--workloads", "hot", "--repeats", "2", "--ways", "padded-1.25", "one_hot", "hf-eager"]


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(moe_layer, "SQUARES", {"cpu": (32,)})


def replace_padded(monkeypatch, run):
    monkeypatch.setitem(layer_ways.EXECUTIONS, "padded", dataclasses.replace(PADDED, run=run))


@pytest.mark.parametrize(("shape", "dtype"), [("tiny", "float32"), ("tiny-switch", "float32"), ("tiny", "bfloat16")])
def test_experts_of_transformers_equal_the_reference(shape, dtype):
    problem = draw_problem(SHAPES[shape]._replace(dtype=dtype), "zipf")
    made = hugging_face.make_experts(problem)
    assert made.keys() == hugging_face.IMPLEMENTATIONS.keys()
    for name, runner in made.items():
        check_runner(name, runner, problem, problem.shape.tokens)
        gradients = runner.training().gradients
        assert {"x", "combine", *problem.weights} == gradients.keys()


def test_no_class_of_transformers_fits_every_kind():
    problem = draw_problem(TINY._replace(kind="geglu"), "uniform")
    with pytest.raises(layer_ways.CannotRunError, match="no experts of kind 'geglu'"):
        hugging_face.make_experts(problem)


def test_without_torch_its_ways_say_so(monkeypatch):
    monkeypatch.setattr(hugging_face.importlib.util, "find_spec", lambda name: None)
    names = ["hf-grouped_mm", "hf-eager"]
    assert moe_layer.make_runners(names, None) == ({}, dict.fromkeys(names, "torch is not installed"))


@pytest.mark.parametrize("name", our_ways())
def test_our_ways_equal_the_reference_where_experts_are_idle(name):
    problem = draw_problem(SHAPES["tiny-switch"], "hot")
    check_runner(name, make_runner(name, problem), problem, our_ways()[name].capacity(problem))


def scaled_output(x, assignment, weights, kind):
    return 1.001 * padded(x, assignment, weights, kind)


def no_gradient_of_one_expert(x, assignment, weights, kind):
    fixed = {name: w.at[2].set(jax.lax.stop_gradient(w[2])) for name, w in weights.items()}
    return padded(x, assignment, fixed, kind)


def no_gradient_of_weights(x, assignment, weights, kind):
    return padded(x, assignment.replace(weight=jax.lax.stop_gradient(assignment.weight)), weights, kind)


def not_a_number(x, assignment, weights, kind):
    y = padded(x, assignment, weights, kind)
    return y + jnp.zeros_like(y).at[0, 0, 0].set(jnp.nan)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (scaled_output, "gradient of down of expert 0: error"),
        (no_gradient_of_one_expert, "gradient of down of expert 2: error"),
        (no_gradient_of_weights, "gradient of combine: error"),
        (not_a_number, "output: error nan"),
    ],
)
def test_a_wrong_result_is_refused(wrong, what, monkeypatch):
    replace_padded(monkeypatch, wrong)
    problem = draw_problem(TINY, "balanced")
    with pytest.raises(WrongResultError, match=f"padded, {what}"):
        check_runner("padded", make_runner("padded", problem), problem, TINY.tokens)


def test_nothing_is_timed_if_a_result_is_wrong(monkeypatch, capsys):
    replace_padded(monkeypatch, scaled_output)
    monkeypatch.setattr(moe_layer, "take_turns", None)
    assert main(["--shapes", "tiny", "--workloads", "hot", "--ways", "padded"]) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.splitlines()[-1].startswith("moe_layer: padded, gradient of")


def test_what_is_checked_has_the_same_experts_and_workload():
    problem = draw_problem(TINY._replace(tokens=layer_ways.CHECKED_TOKENS * 4), "hot")
    few = with_fewer_tokens(problem, "hot")
    assert few.x.shape == (layer_ways.CHECKED_TOKENS, TINY.model_dim)
    assert few.shape == problem.shape._replace(tokens=layer_ways.CHECKED_TOKENS)
    assert few.load().max() == layer_ways.CHECKED_TOKENS
    for name, weight in problem.weights.items():
        assert few.weights[name] is weight


def test_seats_and_what_finds_none():
    problem = draw_problem(TINY, "hot")
    capacity = {name: way.capacity(problem) for name, way in our_ways().items()}
    assert capacity["padded"] == capacity["one_hot"] == 64
    assert capacity["padded-1.25"] == 40
    assert drop_rate(problem, 64) == 0.0
    # The others share 64 choices, of which none has more than 40.
    assert drop_rate(problem, 40) == 24 / 128


def test_rows_are_printed_as_json_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(layer_ways, "MASK_BYTES", 1000)
    output = tmp_path / "rows.jsonl"
    assert main([*QUICK, "--json", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert output.read_text() == printed
    header, *rows = map(json.loads, printed.splitlines())
    assert header["row"] == "header"
    assert header["shapes"]["tiny"] == TINY._asdict()
    assert header["matmul_gflops"]["float32"] > 0
    rows = {row["way"]: row for row in rows}
    assert list(rows) == ["dense", "padded-1.25", "one_hot", "hf-eager"]
    assert rows["one_hot"]["skipped"].startswith("its masks need")
    for name in ("dense", "padded-1.25", "hf-eager"):
        row = rows[name]
        assert (row["row"], row["shape"], row["workload"], row["busiest"]) == ("way", "tiny", "hot", 2.0)
        assert row["drop_rate"] == (24 / 128 if name == "padded-1.25" else 0.0)
        for part in ("forward", "training"):
            assert row[part]["ms"]["median"] > 0
            assert row[part]["to_dense"] == 1.0 if name == "dense" else row[part]["to_dense"] > 0
            assert row[part]["to_hf"] == 1.0 if name == "hf-eager" else row[part]["to_hf"] > 0
            assert row[part]["of_matmul"] > 0
        # Torch counts memory on GPUs alone.
        assert row["to_bound"] == (None if name == "hf-eager" else row["peak_mib"] / row["bound_mib"])
    # Two experts more than the two of a token, each of three matrices 16 x 8, and as many gradients.
    more = 2 * 2 * 3 * 16 * 8 * 4 / 2**20
    assert rows["dense"]["bound_mib"] == pytest.approx(1.3 * rows["dense"]["peak_mib"] + more)
    # Tokens, cotangent, weights; output and gradients; and what is between.
    held = 4 * (2 * (64 * 16 + 3 * 16 * 16) + 2 * 64 * 16) / 2**20
    assert held < rows["dense"]["peak_mib"] < 3 * held


def test_the_table_has_a_block_for_each_case_and_a_dash_for_what_is_not_known(monkeypatch, capsys):
    one_pass = {"ms": {"median": 12.5, "least": 1.0, "most": 20.0}, "to_dense": 1.25, "to_hf": None, "flops": 1e6}
    row = {"row": "way", "busiest": 2.0, "bound_mib": 100.0}
    timed = {"forward": one_pass, "training": one_pass, "drop_rate": 0.25, "peak_mib": None, "to_bound": None}

    def measure_case(*case):
        rows = [
            row
            | {"way": "padded"}
            | {part: dict(value) if isinstance(value, dict) else value for part, value in timed.items()}
        ]
        return [*rows, row | {"way": "hf-eager", "skipped": "torch is not installed"}], {"32^3": 1e-3}

    monkeypatch.setattr(moe_layer, "measure_case", measure_case)
    assert main(["--shapes", "tiny", "--workloads", "uniform", "hot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "; jax " in lines[0]
    assert "best square matrix product: float32 0 GFLOP/s" in lines[1]
    assert [line.partition(":")[0] for line in lines if line.startswith("tiny")] == ["tiny, uniform", "tiny, hot"]
    split = [line.split() for line in lines]
    # 2 * 3 matrices * 16 * 8 * 2 * 64 * 0.75 in 12.5 ms are 90% of 2 * 32**3 in 1 ms; backward twice as much again.
    numbers = ["padded", "12.50", "1.25", "-", "9.0%", "|", "12.50", "1.25", "-", "27.0%", "|", "25.0%", "-", "-"]
    assert split.count(numbers) == 2
    assert split.count(["hf-eager", "-", "torch", "is", "not", "installed"]) == 2


def test_what_needs_too_much_memory_is_not_timed(monkeypatch):
    problem = draw_problem(TINY, "uniform")
    monkeypatch.setattr(layer_ways, "memory_limit", lambda: 1000)
    runners, reasons = moe_layer.make_runners(["padded"], problem)
    assert not runners
    assert reasons["padded"].startswith("needs ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "laptob"], "--shapes is 'laptob'; accepted: "),
        (["--shapes", "laptob"], "; did you mean 'laptop'?"),
        (["--workloads", "even"], "--workloads is 'even'; accepted: balanced, bursts, hot, uniform, zipf"),
        (["--ways", "dropless-magic"], "--ways is 'dropless-magic'; accepted: dense, dropless-"),
        (["--dtype", "float16"], "--dtype is 'float16'; accepted: bfloat16, float32"),
        (["--repeats", "0"], "--repeats is 0; accepted: an integer of at least 1"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("moe_layer: ")
    assert message in line
