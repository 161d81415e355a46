"""A study on several machines: each run is one worker's, and a dead worker's run is taken up again."""

import collections
import multiprocessing
import time

import pytest

from moe_jax.results.rows import read_rows
from moe_jax.study.leases import Leases
from moe_jax.study.sweep import run_name, run_sweep
from tests.study.side_tasks import append_many, fake_train, sweep_with
from tests.training.tiny_runs import tiny_config


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def start():
    """Starts processes, and ends those that are left."""
    # Its server imports the package but never starts jax, so that each fork of it is a fresh process, sooner.
    context, started = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["tests.study.side_tasks"])

    def start(target, *arguments):
        process = context.Process(target=target, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_lease_is_one_worker_s_until_it_is_given_back(tmp_path):
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.acquire("run")
        assert not second.acquire("run")
        assert second.acquire("other")
        first.release("run")
        assert second.acquire("run")
    assert files(tmp_path) == []


def test_a_silent_worker_s_lease_is_taken_over_by_one_other(tmp_path):
    """A machine that was asleep: its lease has no heartbeat, and when it wakes it finds that it lost it."""
    lost, patience = [], 0.2
    asleep = Leases(tmp_path, patience, on_loss=lost.append)
    asleep._host = "elsewhere"
    assert asleep.acquire("run")
    with Leases(tmp_path, patience) as first, Leases(tmp_path, patience) as second:
        assert not first.acquire("run")
        assert not second.acquire("run")
        time.sleep(2 * patience)
        assert sorted([first.acquire("run"), second.acquire("run")]) == [False, True]
        assert files(tmp_path) == ["run.lease0", "run.lease1"]
        with asleep:
            wait_until(lambda: lost)
        assert set(lost) == {"run"}
        assert files(tmp_path) == ["run.lease1"]
    assert files(tmp_path) == []


def test_a_worker_that_beats_keeps_its_lease(tmp_path, monkeypatch):
    patience = 1.0
    with Leases(tmp_path, patience) as first, Leases(tmp_path, patience) as second:
        monkeypatch.setattr(first, "_host", "elsewhere")
        assert first.acquire("run")
        end = time.monotonic() + 3 * patience
        while time.monotonic() < end:
            assert not second.acquire("run")
            time.sleep(0.05)


def test_rows_of_several_processes_are_all_whole(tmp_path, start):
    path = tmp_path / "results.jsonl"
    processes = [start(append_many, path, worker, 20) for worker in range(3)]
    for process in processes:
        process.join()
    rows = read_rows(path)
    assert len(rows) == 60
    for worker in range(3):
        assert [row["number"] for row in rows if row["worker"] == worker] == list(range(20))


def began(folder):
    """Counts how often each run was begun, and by how many machines."""
    lines = [line.split() for line in (folder / "began.txt").read_text().splitlines()]
    return collections.Counter(name for name, _ in lines), {host for _, host in lines}


def test_two_machines_share_out_the_runs(tmp_path, start):
    configs = [tiny_config(sets={"name": f"run{number}"}) for number in range(8)]
    for process in [start(sweep_with, configs, tmp_path, host) for host in ("one", "two")]:
        process.join()
        assert process.exitcode == 0
    counts, hosts = began(tmp_path)
    assert counts == {config.name: 1 for config in configs}
    assert hosts == {"one", "two"}
    assert sorted(row["name"] for row in read_rows(tmp_path / "results.jsonl")) == sorted(counts)
    assert not list((tmp_path / "runs").glob("*.lease*"))


@pytest.mark.parametrize("patience", [120.0, 1.0], ids=["this machine's", "another machine's"])
def test_a_killed_worker_s_run_is_taken_up_again(tmp_path, start, patience):
    """A lease of this machine at once, its process being gone; of another when its heartbeat has been silent."""
    configs = [tiny_config(sets={"name": name}) for name in ("hangs", "ends")]
    here = Leases(tmp_path)._host
    worker = start(sweep_with, configs, tmp_path, here if patience > 100 else "elsewhere")
    wait_until(lambda: (tmp_path / "began.txt").exists())
    worker.kill()
    worker.join()
    assert files(tmp_path / "runs") == [f"{run_name(configs[0])}.lease0"]
    started = time.monotonic()
    rows = run_sweep(configs, tmp_path / "results.jsonl", tmp_path / "runs", fake_train, patience=patience)
    assert time.monotonic() - started < 60
    assert [row["name"] for row in rows] == ["hangs", "ends"]
    assert not list((tmp_path / "runs").glob("*.lease*"))
