"""Runs side by side: all of them once, none before those that it needs, each in its place."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from moe_jax.results.rows import read_rows
from moe_jax.study.sweep import run_directory, run_sweep
from moe_jax.study.workers import Workers, default_jobs
from moe_jax.training.config import DistillationConfig, StartConfig
from tests.study.side_tasks import Meeting, fail, fake_train, have_two_go_on, hold, meet
from tests.training.tiny_runs import tiny_config


def test_workers_do_several_tasks_at_once_and_share_no_core(tmp_path):
    with Workers(meet, 2) as workers:
        for task in range(2):
            workers.submit(Meeting(task, tmp_path, 2))
        assert len(workers.running) == 2
        places = []
        while workers.running:
            places += [place for _, place in workers.take()]
    first, second = sorted(places)
    assert (first.task, second.task) == (0, 1)
    assert first.process != second.process
    assert first.cores.isdisjoint(second.cores)


def test_one_job_is_done_here():
    with Workers(lambda task: (task, os.getpid()), 1) as workers:
        workers.submit("alone")
        assert workers.take() == [("alone", ("alone", os.getpid()))]
        assert workers.take(0.01) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_fails_is_an_error(jobs):
    def do() -> None:
        with Workers(fail, jobs) as workers:
            workers.submit(0)
            workers.take()

    with pytest.raises(ArithmeticError, match="task 0"):
        do()


def test_runs_that_need_each_other_are_refused(tmp_path, configs):
    teacher = configs[0]
    first = dataclasses.replace(teacher, name="first", start=StartConfig(beside(teacher)))
    # Names and not digests: one that knew the other's digest could not be made.
    circle = dataclasses.replace(first, start=StartConfig("../self"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_jax.study.sweep.run_name", lambda config: "self")
        with pytest.raises(ValueError, match=r"runs \['self'\] start from or learn from each other in a circle"):
            run_sweep([circle], tmp_path / "results.jsonl", tmp_path / "runs", fake_train)


def test_workers_end_with_their_parent(tmp_path):
    """However it ends."""
    parent = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path,))
    parent.start()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.join()
    workers = [Path("/proc") / path.name / "stat" for path in tmp_path.iterdir()]
    # Gone, or dead and waiting for somebody to take note.
    wait_until(lambda: not any(stat.exists() and stat.read_text().split()[2] != "Z" for stat in workers))


@pytest.mark.parametrize("asked", ["parent", "worker"])
def test_whoever_is_asked_to_stop_all_save_before_the_parent_ends(tmp_path, asked):
    parent = multiprocessing.get_context("spawn").Process(target=have_two_go_on, args=(tmp_path,))
    parent.start()
    wait_until(lambda: len(list(tmp_path.glob("*.began"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("*.began")]
    os.kill(parent.pid if asked == "parent" else workers[0], signal.SIGTERM)
    parent.join(60)
    assert parent.exitcode == 0
    assert sorted(int(path.stem) for path in tmp_path.glob("*.saved")) == sorted(workers)
    assert (tmp_path / "said").read_text().startswith("stopped by SIGTERM; 2 runs have saved the step")


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def configs(tmp_path):
    """A teacher, its student, a run that starts from the student, and one that needs nothing."""
    other, teacher = (tiny_config(sets={"name": name}) for name in ("diverges", "teacher"))
    student = dataclasses.replace(other, name="student", distillation=DistillationConfig(beside(teacher)))
    tuned = dataclasses.replace(other, name="tuned", start=StartConfig(beside(student)))
    return [teacher, student, tuned, other]


def beside(config):
    return f"../{run_directory(config, Path()).name}"


def test_a_sweep_side_by_side_has_the_rows_of_one_after_the_other(tmp_path, configs):
    """Also of a run that diverges, and nothing waits for a run that ended in an earlier sweep."""
    teacher, *_ = configs
    results, tables = tmp_path / "results.jsonl", []
    run_sweep([teacher], results, tmp_path / "runs", fake_train)
    rows = run_sweep(configs, results, tmp_path / "runs", fake_train, tables.append, may_diverge=True, jobs=2)
    assert [row["name"] for row in rows] == ["teacher", "student", "tuned", "diverges"]
    assert [len(table) for table in tables] == [2, 3, 4]
    alone = run_sweep(configs, tmp_path / "alone.jsonl", tmp_path / "alone", fake_train, may_diverge=True)
    by_name = {row["name"]: row for row in alone}
    for row in rows:
        # Its cores are fewer.
        differing = {"finished": row["finished"], "host": row["host"]}
        assert row == by_name[row["name"]] | differing
    cores = {row["name"]: row["host"]["cores"] for row in rows}
    assert cores["student"] < cores["teacher"]
    ended = [row["name"] for row in read_rows(results)]
    assert ended.index("student") < ended.index("tuned")


@pytest.mark.parametrize("left", ["nothing", "a folder", "an earlier checkpoint"])
def test_what_is_gone_or_unfinished_is_trained_where_others_need_it(tmp_path, configs, left):
    """Here the student and, for it, the teacher; there is no second row of either, and none is trained for nothing."""
    results, runs = tmp_path / "results.jsonl", tmp_path / "runs"
    run_sweep(configs[:2], results, runs, fake_train)
    for path in runs.iterdir():
        shutil.rmtree(path)
        if left != "nothing":
            (path / "checkpoints").mkdir(parents=True)
        if left == "an earlier checkpoint":
            (path / "checkpoints" / str(configs[0].steps - 1)).mkdir()
    assert len(run_sweep(configs[:2], results, runs, fake_train)) == 2
    assert not list(runs.glob(f"*/checkpoints/{configs[0].steps}"))
    rows = run_sweep(configs[:3], results, runs, fake_train)
    assert read_rows(results) == rows
    finished = [path.parts[-3] for path in runs.glob(f"*/checkpoints/{configs[0].steps}")]
    assert sorted(name.split("-")[0] for name in finished) == ["student", "teacher", "tuned"]


def test_what_is_finished_needs_nothing_any_more(tmp_path, configs):
    """The teacher is gone and its student there, from which another starts: the teacher is not trained again."""
    results, runs = tmp_path / "results.jsonl", tmp_path / "runs"
    run_sweep(configs[:2], results, runs, fake_train)
    shutil.rmtree(run_directory(configs[0], runs))
    assert len(run_sweep(configs[:3], results, runs, fake_train)) == 3
    assert not run_directory(configs[0], runs).exists()


def test_as_many_jobs_as_cores_and_no_more_than_four(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 6})
    assert default_jobs() == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    assert default_jobs() == 4
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert default_jobs() == 1
