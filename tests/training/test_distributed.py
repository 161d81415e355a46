"""Two processes as one: their loss is one process's, and a lost one ends the other, whose run then goes on alone."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from moe_jax.cli import main
from moe_jax.configuration import ConfigError
from moe_jax.training.distributed import Processes
from moe_jax.training.loop import train
from tests.comparison import assert_close
from tests.training.tiny_runs import lines_of, tiny_config, tiny_values, write_config, write_corpus

MESH = {"mesh": {"expert": 2, "data": 2}}
DESCRIPTION = (
    "tiny on 4 cpu devices (data 2, expert 2); experts run by 'padded' (chosen by 'auto'), "
    "reached by 'gather' (chosen by 'auto')"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, prepared already, so that processes only read it."""
    folder = tmp_path_factory.mktemp("distributed")
    write_corpus(folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
        yield folder


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start_two(folder, workdir, sets, second=None, homes=(None, None)):
    """Two processes of two devices each, on a mesh that reaches across them; the second with other `sets` if given."""
    count = "--xla_force_host_platform_device_count"
    environment = os.environ | {"XLA_FLAGS": re.sub(rf"{count}=\d+", f"{count}=2", os.environ["XLA_FLAGS"])}
    port, processes = free_port(), []
    for i, (other, home) in enumerate(zip((None, second), homes, strict=True)):
        values = tiny_values(folder / "corpus", sets | (other or {})) | MESH
        config = write_config(folder / f"{workdir.name}-{i}.py", values)
        how = f"localhost:{port},2,{i}"
        command = [sys.executable, "-m", "moe_jax", "train", str(config), "--workdir", str(workdir)]
        own = environment | ({"HOME": str(home)} if home else {})
        with (folder / f"{workdir.name}-{i}.log").open("w") as log:
            processes.append(subprocess.Popen([*command, "--distributed", how], env=own, stdout=log, stderr=log))
    return processes


def test_two_processes_have_the_loss_of_one(folder):
    """Also where it starts from another run and learns from it."""
    workdir = folder / "two"
    sets = {"steps": 5, "eval_every": 5}
    train(tiny_config(folder / "corpus", sets), folder / "other", progress=False)
    sets |= {"seed": 1, "start": {"run": "other"}, "distillation": {"run": "other"}}
    assert [process.wait(timeout=240) for process in start_two(folder, workdir, sets)] == [0, 0]
    train(tiny_config(folder / "corpus", sets), folder / "one", progress=False)
    two, one = (lines_of(folder / name / "metrics.jsonl") for name in ("two", "one"))
    assert [(line["step"], line["split"]) for line in two] == [(line["step"], line["split"]) for line in one]
    assert len([line for line in two if line["split"] == "train"]) == 5
    for line, expected in zip(two, one, strict=True):
        assert_close(line["loss"], expected["loss"], what=f"step {line['step']}")
    first, second = ((folder / f"two-{i}.log").read_text() for i in range(2))
    assert DESCRIPTION in first
    assert "validation loss" in first
    assert "tiny" not in second


@pytest.mark.parametrize("field", ["model.moe.capacity_factor", "steps", "corpus"])
def test_processes_that_do_not_agree_refuse_before_the_first_step(folder, field):
    """Another router's option, another number of steps, another text in the folder of the same name."""
    homes = [folder / name for name in ("home-0", "home-1" if field == "corpus" else "home-0")]
    for i, home in enumerate(dict.fromkeys(homes)):
        home.mkdir(exist_ok=True)
        (home / "text.txt").write_text(f"Line of text number {i}.\n" * 200)
    sets = {"steps": 5, "eval_every": 5, "data.corpus": "text_files:~/*.txt"}
    other = {} if field == "corpus" else {field: 7}
    workdir = folder / f"other-{field}"
    assert [process.wait(timeout=120) for process in start_two(folder, workdir, sets, other, homes)] == [2, 2]
    for i in range(2):
        log = (folder / f"other-{field}-{i}.log").read_text()
        refusal = rf"moe-jax train: {field}\S* is .*; accepted: the same .* in every process; process {1 - i} has \S+$"
        assert re.search(refusal, log, re.MULTILINE), log
    assert not workdir.exists()


def test_asked_to_stop_both_save_one_step(folder):
    workdir = folder / "stopped"
    found = start_two(folder, workdir, {"steps": 4000, "eval_every": 4000, "checkpoint_every": 4000})
    deadline = time.monotonic() + 120
    while len(lines_of(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []) < 5:
        assert time.monotonic() < deadline
        assert found[0].poll() is None, (folder / "stopped-0.log").read_text()
        time.sleep(0.05)
    found[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in found] == [128 + signal.SIGTERM] * 2
    (saved,) = (int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())
    assert f"stopped by SIGTERM after step {saved}" in (folder / "stopped-0.log").read_text()


def test_a_lost_process_ends_the_other_and_the_run_goes_on_alone(folder):
    workdir = folder / "lost"
    sets = {"steps": 400, "eval_every": 400, "checkpoint_every": 40}
    first, second = start_two(folder, workdir, sets)
    deadline = time.monotonic() + 240
    while not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        assert time.monotonic() < deadline
        assert first.poll() is None, (folder / "lost-0.log").read_text()
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert first.wait(timeout=60) not in (0, None)
    log = (folder / "lost-0.log").read_text()
    # Ours, or jax's own where its coordination service is the first to know.
    assert "go on from the last checkpoint" in log or "another task died" in log
    checkpoint = max(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())
    assert checkpoint < 400
    result = train(tiny_config(folder / "corpus", sets), workdir, progress=False)
    steps = [line["step"] for line in lines_of(workdir / "metrics.jsonl") if line["split"] == "train"]
    assert steps == list(range(1, 401))
    assert result.curve[-1]["step"] == 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinator": "host:1"}, r"processes is \['coordinator'\]; accepted: coordinator, count and index together"),
        ({"coordinator": "host", "count": 2, "index": 0}, "coordinator is 'host'; accepted: HOST:PORT"),
        ({"coordinator": "host:1", "count": 2, "index": 2}, "index is 2; accepted: 0 to 1"),
    ],
)
def test_what_does_not_say_where_to_meet_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Processes(**fields)


def test_a_wrong_option_is_refused_in_one_line(folder, capsys):
    config = write_config(folder / "config.py", tiny_values(folder / "corpus"))
    status = main(["train", str(config), "--workdir", str(folder / "none"), "--distributed", "slurm"])
    assert status == 2
    assert "--distributed is 'slurm'; accepted: auto, or HOST:PORT,COUNT,INDEX" in capsys.readouterr().err
    assert not (folder / "none").exists()
