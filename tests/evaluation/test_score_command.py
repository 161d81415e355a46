"""`moe_jax score` on a run of a few steps."""

import dataclasses
import json

import jax
import pytest

from moe_jax.cli import main
from moe_jax.data.corpora import load_corpus
from moe_jax.evaluation.examples import Example
from moe_jax.evaluation.few_shot import score_task, scorer_of
from moe_jax.training.loop import train
from moe_jax.training.trained import load_run
from tests.training.tiny_runs import tiny_config, write_assignments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, a folder that is none, and two files of questions."""
    folder = tmp_path_factory.mktemp("score")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
        sets = {"steps": 8, "data.sequence_length": 128, "eval_batches": 1}
        train(tiny_config(write_assignments(folder / "corpus"), sets), folder / "run", progress=False)
        (folder / "empty").mkdir()
        questions = [{"q": f"{'ab' * i}:", "a": [" word1", " zzz", " word"], "right": i % 3} for i in range(1, 9)]
        (folder / "choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
        (folder / "cloze.jsonl").write_text('{"context": "word", "target": "1"}\n' * 2)
        yield folder
    jax.clear_caches()


FIELDS = ["--context", "q", "--choices", "a", "--answer", "right"]


def rows_of(capsys, *arguments):
    assert main(["score", *map(str, arguments), "--json"]) == 0
    output = capsys.readouterr()
    return [json.loads(line) for line in output.out.splitlines()]


@pytest.mark.parametrize(
    ("task", "fields"),
    [("corpus:continuation", {"normalisation": "per_token"}), ("corpus:last_word", {"chance": None})],
)
def test_tasks_of_the_corpus(folder, capsys, task, fields):
    arguments = [folder / "run", task, "--examples", 12, "--shots", "0,1", "--lines", 2]
    rows = rows_of(capsys, *arguments)
    assert [(row["shots"], row["seeds"], row["examples"], row["truncated"]) for row in rows] == [
        (0, [], 12, 0),
        (1, [0], 12, 0),
    ]
    assert rows[1]["demonstrations"] == 1
    for row in rows:
        assert row.items() >= ({"name": "tiny", "step": 8, "task": task} | fields).items()
        assert row["interval"][0] < row["accuracy"] < row["interval"][1] or row["accuracy"] in (0, 1)
    assert rows_of(capsys, *arguments) == rows


def test_a_file_is_scored_as_by_hand(folder, capsys):
    rows = rows_of(capsys, folder / "run", folder / "choice.jsonl", *FIELDS, "--shots", 2, "--normalisation", "sum")
    run = load_run(folder / "run")
    scorer = scorer_of(run, load_corpus(run.config.data))
    examples = [Example(f"{'ab' * i}:", (" word1", " zzz", " word"), i % 3) for i in range(1, 9)]
    expected = dataclasses.asdict(score_task(scorer, examples, examples, 2, 0, "sum"))
    (row,) = rows
    assert row.items() >= json.loads(json.dumps(expected)).items()


def test_demonstrations_and_examples_can_be_chosen(folder, capsys):
    """With one example in another file, that one comes before every question."""
    (folder / "one.jsonl").write_text(json.dumps({"q": "a", "a": ["b", "c"], "right": 0}) + "\n")
    arguments = [folder / "run", folder / "choice.jsonl", *FIELDS, "--examples", 3, "--seeds", "0,1"]
    first, second, mean = rows_of(capsys, *arguments, "--shots", 1, "--demonstrations", folder / "one.jsonl")
    assert first | {"seeds": [1]} == second
    assert (mean["seeds"], mean["examples"], mean["interval"]) == ([0, 1], 3, [first["accuracy"]] * 2)
    assert first["demonstrations"] == 1
    ours, *_ = rows_of(capsys, *arguments, "--shots", 1)
    assert ours["perplexity"] != first["perplexity"]


def test_the_table_says_what_was_asked(folder, capsys):
    arguments = [str(folder / "choice.jsonl"), *FIELDS, "--shots", "0,1", "--seeds", "0,1"]
    assert main(["score", str(folder / "run"), *arguments]) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == f"tiny after 8 steps; {folder}/choice.jsonl: 8 examples, choices per_token, chance 0.333"
    assert header.split()[:4] == ["shots", "seeds", "accuracy", "interval"]
    assert [line.split()[:2] for line in lines] == [["0", "-"], ["1", "0"], ["1", "1"], ["1", "0,1"]]
    assert main(["score", str(folder / "run"), str(folder / "cloze.jsonl")]) == 0
    title, _, line = capsys.readouterr().out.splitlines()
    assert title.endswith("cloze.jsonl: 2 examples, cloze")
    assert line.split()[6] == "-"


@pytest.mark.parametrize(
    ("workdir", "arguments", "says"),
    [
        ("empty", ["corpus:continuation"], "which has no run.json"),
        ("run", ["corpus:nothing"], "corpus task is 'nothing'; accepted: continuation, last_word"),
        ("run", ["corpus:continuation", "--examples", "0"], "examples is 0; accepted: at least 1 and at most"),
        ("run", ["corpus:continuation", "--lines", "0"], "lines is 0; accepted: an integer of at least 1"),
        (
            "run",
            ["corpus:continuation", "--demonstrations", "a.jsonl"],
            "--demonstrations is 'a.jsonl'; accepted: no --demonstrations",
        ),
        ("run", ["absent.jsonl"], "TASK is 'absent.jsonl'; accepted: a file of JSON lines"),
        ("run", ["{folder}/cloze.jsonl", "--examples", "0"], "examples is 0; accepted"),
        ("run", ["{folder}/cloze.jsonl", "--shots", "1"], "shots is 1; accepted: at most 0"),
        ("run", ["{folder}/cloze.jsonl", "--batch-size", "0"], "--batch-size is 0; accepted: an integer of at least 1"),
        ("run", ["{folder}/choice.jsonl"], "choice.jsonl:1: context is missing"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, workdir, arguments, says):
    arguments = [argument.format(folder=folder) for argument in arguments]
    assert main(["score", str(folder / workdir), *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("moe-jax score: ")
    assert output.err.count("\n") == 1
    assert says in output.err


@pytest.mark.parametrize("shots", ["1,x", "-1", ""])
def test_shots_that_are_no_numbers_are_refused(capsys, shots):
    with pytest.raises(SystemExit) as stop:
        main(["score", "run", "task.jsonl", f"--shots={shots}"])
    assert stop.value.code == 2
    assert "accepted: integers of at least 0, separated by commas" in capsys.readouterr().err


def test_a_corpus_that_changed_is_refused(folder, capsys):
    path = folder / "corpus" / "new.txt"
    path.write_text("something else\n")
    try:
        assert main(["score", str(folder / "run"), "corpus:last_word"]) == 2
    finally:
        path.unlink()
    assert "accepted: the corpus that the model was trained on" in capsys.readouterr().err
