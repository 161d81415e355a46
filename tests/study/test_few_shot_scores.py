"""Scores of a study's runs: those of each run as asked by hand, and asked once."""

import json
import shutil

import jax
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.data.corpora import load_corpus
from moe_jax.evaluation.few_shot import score_rows, scorer_of
from moe_jax.evaluation.questions import corpus_task
from moe_jax.results.rows import read_rows
from moe_jax.study import few_shot_scores
from moe_jax.study.few_shot_scores import Questions, require_questions, score_runs
from moe_jax.study.sweep import run_directory
from moe_jax.training.loop import train
from moe_jax.training.trained import load_run
from tests.training.tiny_runs import tiny_config, write_assignments

QUESTIONS = Questions({"continuation": 1, "last_word": 2}, 6, (0, 1))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two runs, and their folder."""
    folder = tmp_path_factory.mktemp("scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
        corpus = write_assignments(folder / "corpus")
        configs = [
            tiny_config(corpus, {"steps": 8, "data.sequence_length": 128, "eval_batches": 1, "seed": seed})
            for seed in (0, 1)
        ]
        for config in configs:
            train(config, run_directory(config, folder / "runs"), progress=False)
        yield configs, folder / "runs"
    jax.clear_caches()


@pytest.fixture
def asked(monkeypatch):
    """The runs that are read, and a note of each time that one is asked."""
    log = []
    monkeypatch.setattr(few_shot_scores, "load_run", lambda path: log.append(path.name) or load_run(path))
    ask = few_shot_scores.score_rows
    monkeypatch.setattr(few_shot_scores, "score_rows", lambda *of: log.append(of[3]) or ask(*of))
    return log


def test_each_run_is_scored_as_by_hand(study, tmp_path):
    configs, runs = study
    scores = score_runs(configs, runs, tmp_path / "scores.jsonl", QUESTIONS)
    assert scores == read_rows(tmp_path / "scores.jsonl")
    expected = [
        (config.seed, task, shots) for config in configs for task in ("continuation", "last_word") for shots in (0, 1)
    ]
    assert [(score["seed"], score["task"], score["shots"]) for score in scores] == expected
    assert len({score["run"] for score in scores}) == 2
    run = load_run(run_directory(configs[1], runs))
    corpus = load_corpus(run.config.data)
    (by_hand,) = score_rows(scorer_of(run, corpus), *corpus_task("last_word", corpus, 6, 2), [1], [0])
    assert scores[-1].items() >= json.loads(json.dumps(by_hand)).items()
    assert scores[-1].items() >= {"name": "tiny", "lines": 2, "asked": 6}.items()


def test_what_is_scored_is_not_scored_again(study, tmp_path, asked):
    configs, runs = study
    path = tmp_path / "scores.jsonl"
    score_runs(configs[:1], runs, path, QUESTIONS)
    # A kill in the middle of a line.
    path.write_bytes(path.read_bytes() + b'{"run": "ti')
    asked.clear()
    scores = score_runs(configs, runs, path, QUESTIONS)
    assert asked == [run_directory(configs[1], runs).name, [0], [1], [0], [1]]
    asked.clear()
    assert score_runs(configs, runs, path, QUESTIONS) == scores == read_rows(path)
    assert asked == []


def test_other_questions_are_other_scores(study, tmp_path, asked):
    configs, runs = study
    path = tmp_path / "scores.jsonl"
    score_runs(configs[:1], runs, path, Questions({"continuation": 1}, 6, (0,)))
    for other in (Questions({"continuation": 2}, 6, (0,)), Questions({"continuation": 1}, 5, (0,))):
        asked.clear()
        (score,) = score_runs(configs[:1], runs, path, other)
        assert asked
        assert (score["lines"], score["asked"]) == (other.tasks["continuation"], other.examples)
    assert len(read_rows(path)) == 3


def test_scores_are_read_where_the_runs_are_gone(study, tmp_path):
    configs, runs = study
    moved = shutil.copytree(runs, tmp_path / "runs")
    scores = score_runs(configs, moved, tmp_path / "scores.jsonl", QUESTIONS)
    shutil.rmtree(moved)
    assert score_runs(configs, moved, tmp_path / "scores.jsonl", QUESTIONS) == scores
    require_questions(configs, moved, tmp_path / "scores.jsonl", QUESTIONS)
    with pytest.raises(ConfigError, match=r"has no run\.json"):
        score_runs(configs, moved, tmp_path / "others.jsonl", QUESTIONS)


def test_too_many_questions_are_refused_before_there_are_runs(study, tmp_path):
    configs, _ = study
    many = Questions({"last_word": 2}, 10**6, (0,))
    with pytest.raises(ConfigError, match="examples is 1000000; accepted: at least 1 and at most"):
        require_questions(configs, tmp_path / "none", tmp_path / "scores.jsonl", many)
    require_questions(configs, tmp_path / "none", tmp_path / "scores.jsonl", QUESTIONS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": {"continuatio": 1}}, "tasks is 'continuatio'; accepted: .*did you mean 'continuation'"),
        ({"tasks": {"last_word": 0}}, r"tasks\.last_word is 0; accepted: an integer of at least 1"),
        ({"examples": 0}, "examples is 0; accepted: an integer of at least 1"),
        ({"shots": (0, -1)}, r"shots is \(0, -1\); accepted: integers of at least 0"),
    ],
)
def test_questions_that_nobody_can_ask_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Questions(**{"tasks": {"continuation": 1}, "examples": 1} | fields)
