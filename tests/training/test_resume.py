"""A run that is killed, at whatever moment, ends as if it had not been."""

import dataclasses
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import struct
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from moe_jax.configuration import ConfigError
from moe_jax.data.pipeline import load_text
from moe_jax.runtime.files import WriteError
from moe_jax.training import loop
from moe_jax.training.evaluation import evaluate
from moe_jax.training.result import DivergenceError
from moe_jax.training.step import make_eval_step
from moe_jax.training.trained import is_finished, load_run
from tests.training.tiny_runs import (
    lines_of,
    tiny_config,
    tiny_values,
    train_in_process,
    write_config,
    write_corpus,
)

STEPS = 60
SETS = {"steps": STEPS, "eval_every": 15, "checkpoint_every": 5, "eval_all_at_end": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus, a configuration file, and the directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("world")
    corpus = write_corpus(folder / "corpus")
    write_config(folder / "config.py", tiny_values(corpus, SETS))
    # The server imports the package but never starts jax, so that each fork of it is a fresh process, sooner.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["moe_jax.training.loop"])

    def start(workdir):
        process = processes.Process(target=train_in_process, args=(folder, workdir))
        process.start()
        return process

    undisturbed = start(folder / "undisturbed")
    undisturbed.join()
    assert undisturbed.exitcode == 0, (folder / "undisturbed.log").read_text()
    return folder, start


def line_count(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def writes_checkpoint(workdir):
    return any(workdir.glob("checkpoints/*tmp*"))


def kill_when(process, workdir, lines, in_checkpoint):
    """Kills `process` once it has written `lines`, at a moment that is made sure of while it stands still."""

    def now():
        return line_count(workdir) >= lines and (writes_checkpoint(workdir) or not in_checkpoint)

    while True:
        assert process.is_alive(), "the run ended before it could be killed"
        if now():
            os.kill(process.pid, signal.SIGSTOP)
            if now():
                break
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_killed_five_times_it_writes_the_same_metrics_to_the_bit(world):
    folder, start = world
    workdir = folder / "killed"
    draw = random.Random(0)
    # Lines of metrics in the file when the process is killed, and whether a checkpoint has to be half written then.
    first = [(draw.randint(1, 4), False)]
    later = [(first_line + draw.randint(1, 6), i % 2 == 0) for i, first_line in enumerate((12, 24, 36, 48))]
    for lines, in_checkpoint in first + later:
        process = start(workdir)
        kill_when(process, workdir, lines, in_checkpoint)
        if lines < 5:
            assert not any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))
    last = start(workdir)
    last.join()
    assert last.exitcode == 0, (folder / "killed.log").read_text()
    assert (workdir / "metrics.jsonl").read_bytes() == (folder / "undisturbed" / "metrics.jsonl").read_bytes()
    assert not writes_checkpoint(workdir)
    timing = lines_of(workdir / "timing.jsonl")
    assert [line["step"] for line in timing] == [*range(0, STEPS, 15), STEPS]
    assert all(one["seconds"] < other["seconds"] for one, other in itertools.pairwise(timing))


def test_asked_to_stop_it_saves_the_step_and_goes_on_from_there(world):
    folder, start = world
    workdir = folder / "stopped"
    process = start(workdir)
    while line_count(workdir) < 7:
        assert process.is_alive(), (folder / "stopped.log").read_text()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM, (folder / "stopped.log").read_text()
    saved = max(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())
    said = f"stopped by SIGTERM after step {saved}, which is saved; the same command goes on from there"
    assert (folder / "stopped.log").read_text().count(said) == 1
    last = start(workdir)
    last.join()
    assert last.exitcode == 0
    assert (workdir / "metrics.jsonl").read_bytes() == (folder / "undisturbed" / "metrics.jsonl").read_bytes()


def test_metrics_have_every_step_and_no_clock(world):
    folder, _ = world
    lines = lines_of(folder / "undisturbed" / "metrics.jsonl")
    steps = {split: [line["step"] for line in lines if line["split"] == split] for split in ("train", "validation")}
    assert steps == {"train": [*range(1, STEPS + 1)], "validation": [0, 15, 30, 45, 60]}
    assert [line["step"] for line in lines_of(folder / "undisturbed" / "timing.jsonl")] == steps["validation"]
    names = {name for line in lines for name in line}
    assert names == {
        *("step", "split", "loss", "bits_per_byte", "total_loss", "gradient_norm", "learning_rate", "load"),
        *("balance_loss", "z_loss", "capacity_factor", "confidence", "entropy", "dead_experts", "fraction_dropped"),
        *("load_cv", "load_gini", "load_max_over_mean", "seats_filled", "tokens_unrouted"),
    }


def test_the_model_learns(world):
    folder, _ = world
    losses = [line["loss"] for line in lines_of(folder / "undisturbed" / "metrics.jsonl") if "bits_per_byte" in line]
    assert losses[-1] < losses[0] - 1.0


class Interrupted(Exception):
    pass


@pytest.fixture
def run(world, monkeypatch):
    """Trains the undisturbed run's configuration in a directory of this process."""
    folder, _ = world
    monkeypatch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
    config = tiny_config(folder / "corpus", SETS)
    return config, folder / "undisturbed", lambda workdir, **more: loop.train(config, workdir, False, **more)


def only_identity(workdir):
    for path in workdir.iterdir():
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut_last_line(workdir):
    path = workdir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(workdir / name)


def unfinished_checkpoint(workdir):
    before, checkpoint = sorted((workdir / "checkpoints").iterdir())
    shutil.rmtree(before)
    checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.orbax-checkpoint-tmp"))


@pytest.mark.parametrize("disturb", [only_identity, cut_last_line, unfinished_checkpoint])
def test_what_a_kill_can_leave_is_taken_from_there(run, tmp_path, disturb):
    _, undisturbed, train = run
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    disturb(workdir)
    train(workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_lines_after_the_checkpoint_and_half_a_line_are_written_again(run, tmp_path, monkeypatch):
    _, undisturbed, train = run
    workdir = tmp_path / "run"

    def fail(self, step, state, position):
        save(self, step, state, position)
        if step == 10:
            raise Interrupted

    save = loop.Checkpoints.save
    monkeypatch.setattr(loop.Checkpoints, "save", fail)
    with pytest.raises(Interrupted):
        train(workdir)
    monkeypatch.setattr(loop.Checkpoints, "save", save)
    whole = (undisturbed / "metrics.jsonl").read_bytes()
    written = (workdir / "metrics.jsonl").read_bytes()
    assert whole.startswith(written)
    (workdir / "metrics.jsonl").write_bytes(whole[: len(written) + 1000])
    train(workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == whole
    assert_tensorboard_shows_the_metrics(workdir)


def test_a_run_goes_on_when_its_disk_is_no_longer_full(run, tmp_path, monkeypatch):
    _, undisturbed, train = run
    workdir = tmp_path / "run"
    disk_usage, compiled = shutil.disk_usage, {}

    def full_from_step_10(folder):
        """The disk, with too little space for a checkpoint once two are there."""
        usage = disk_usage(folder)
        return usage._replace(free=1000) if len(list(Path(folder).glob("[0-9]*"))) == 2 else usage

    monkeypatch.setattr(shutil, "disk_usage", full_from_step_10)
    with pytest.raises(
        WriteError, match=r"checkpoints' cannot be written: .* takes up to [\d,]+ bytes, and 1,000 are free"
    ):
        train(workdir, compiled=compiled)
    assert int(load_run(workdir).state.step) == 10
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    train(workdir, compiled=compiled)
    assert (workdir / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_a_finished_run_gives_its_result_again_without_compiling(run, tmp_path, monkeypatch):
    config, undisturbed, train = run
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    monkeypatch.setattr(loop, "_Session", None)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    result = train(workdir)
    assert train(workdir) == result
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before
    assert [point["step"] for point in result.curve] == [0, 15, 30, 45, 60]
    assert result.curve[-1]["tokens"] == 60 * config.data.batch_size * config.data.sequence_length
    assert result.compile_seconds > 0
    assert result.seconds == pytest.approx(result.curve[-1]["seconds"], abs=1e-4)


def test_a_run_is_read_back_as_it_was_saved(run, tmp_path):
    config, undisturbed, _ = run
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    trained = load_run(str(undisturbed))
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before
    assert trained.config == config
    assert int(trained.state.step) == STEPS
    assert is_finished(config, undisturbed)
    assert not is_finished(dataclasses.replace(config, steps=STEPS + 1), undisturbed)
    assert not is_finished(config, tmp_path)
    # The last evaluation is of the whole validation text.
    batches = load_text(config.data).validation_batches(None)
    assert len(batches) > config.eval_batches
    numbers = evaluate(jax.jit(make_eval_step(trained.config)), trained.state, batches, 1.0)
    assert numbers["loss"] == lines_of(undisturbed / "metrics.jsonl")[-1]["loss"]


@pytest.mark.parametrize(
    ("keeps", "says"),
    [((), "no run.json"), (("run.json",), "no checkpoints"), (("run.json", "checkpoints"), "no checkpoint yet")],
)
def test_a_directory_without_a_trained_run_is_refused(run, tmp_path, keeps, says):
    _, undisturbed, _ = run
    for name in keeps:
        (tmp_path / name).mkdir() if name == "checkpoints" else shutil.copy(undisturbed / name, tmp_path)
    with pytest.raises(ConfigError, match=rf"workdir is .*, which has {says}; accepted: "):
        load_run(tmp_path)


def test_without_its_clock_a_finished_run_is_one_line(run, tmp_path):
    _, undisturbed, train = run
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "timing.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"timing.jsonl is 'incomplete or missing'; accepted: a file with the seconds of"
    ):
        train(tmp_path / "run")


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_run_that_diverges_ends_and_keeps_the_last_finite_checkpoint(run, tmp_path, monkeypatch, log_every):
    config, _, _ = run
    config = dataclasses.replace(config, log_every=log_every)

    def diverging(*arguments):
        train_step, eval_step = compile_steps(*arguments)

        def step(state, batch):
            state, metrics = train_step(state, batch)
            return state, metrics | ({"gradient_norm": np.float32("nan")} if state.step >= 8 else {})

        return step, eval_step

    compile_steps = loop.compile_steps
    monkeypatch.setattr(loop, "compile_steps", diverging)
    at = 8 if log_every == 1 else 10
    with pytest.raises(DivergenceError, match=rf"gradient_norm is nan at step {at}: training diverged") as error:
        loop.train(config, tmp_path, progress=False)
    assert [point["step"] for point in error.value.result.curve] == [0]
    assert int(load_run(tmp_path).state.step) == 5
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_seconds_are_of_training_alone_over_all_its_sessions(run, tmp_path, monkeypatch):
    _, _, train = run
    now = [0.0]

    def takes(seconds, function):
        def slow(*arguments):
            now[0] += seconds
            return function(*arguments)

        return slow

    def compile_slowly(*arguments):
        train_step, eval_step = compile_steps(*arguments)
        return takes(1.0, train_step), takes(100.0, eval_step)

    def save_slowly(self, step, *arguments):
        save(self, step, *arguments)
        if step == 20 and not interrupted:
            interrupted.append(step)
            raise Interrupted

    compile_steps, save, interrupted = loop.compile_steps, loop.Checkpoints.save, []
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop, "compile_steps", takes(1e6, compile_slowly))
    monkeypatch.setattr(loop.Checkpoints, "save", takes(1e4, save_slowly))
    with pytest.raises(Interrupted):
        train(tmp_path / "run")
    result = train(tmp_path / "run")
    assert interrupted == [20]
    assert [point["seconds"] for point in result.curve] == [0, 15, 30, 45, 60]
    assert (result.seconds, result.compile_seconds) == (60, 1e6)


def read_scalars(folder):
    """Scalars by name and step in TensorBoard's event files, without what it forgets when a run starts anew."""
    scalars = {}
    for path in sorted(folder.iterdir()):
        content, start = path.read_bytes(), 0
        while start < len(content):  # Records of TFRecord's form: length, its checksum, content, its checksum.
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            start += 12 + length + 4
            if event.session_log.status == SessionLog.START:
                scalars = {key: value for key, value in scalars.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in scalars
                scalars[value.tag, event.step] = value.simple_value
    return scalars


def assert_tensorboard_shows_the_metrics(workdir):
    shown = read_scalars(workdir / "tensorboard")
    expected = {
        (f"{line['split']}/{name}", line["step"]): value
        for line in lines_of(workdir / "metrics.jsonl")
        for name, value in line.items()
        if isinstance(value, float)
    }
    assert shown.keys() == expected.keys()
    assert all(shown[key] == pytest.approx(expected[key], rel=1e-6) for key in expected)


def test_tensorboard_shows_each_scalar_of_each_step_once(world):
    folder, _ = world
    assert_tensorboard_shows_the_metrics(folder / "undisturbed")


def test_another_run_s_directory_is_refused_and_left_alone(run, tmp_path):
    config, undisturbed, _ = run
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    other = tiny_config(undisturbed.parent / "corpus", SETS | {"model.moe.num_experts": 8})
    with pytest.raises(ConfigError, match=r"run with config\.model\.moe\.num_experts=4, but this run has 8"):
        loop.train(other, workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    (workdir / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"has metrics\.jsonl but no run\.json"):
        loop.train(config, workdir)
