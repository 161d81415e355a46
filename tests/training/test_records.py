"""A run's folder is its own, also after a later version has given its configuration another field."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe_jax.configuration import ConfigError, to_dict
from moe_jax.training.records import claimed
from tests.training.tiny_runs import tiny_config

HOLD = """
import json, sys, time
from pathlib import Path
from moe_jax.training.records import claimed
with claimed(Path(sys.argv[1]), json.loads(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def identity(**sets):
    return {"config": to_dict(tiny_config(sets=sets)), "corpus": {"name": "text", "digest": "5eed"}}


def claim(workdir, identity):
    with claimed(workdir, identity):
        pass


def test_a_folder_is_of_one_run(tmp_path):
    claim(tmp_path / "run", identity())
    claim(tmp_path / "run", identity())
    with pytest.raises(ConfigError, match=r"holds a run with config\.steps=\d+, but this run has 7"):
        claim(tmp_path / "run", identity(steps=7))


def test_a_run_may_go_on_with_other_intervals_and_more_steps(tmp_path):
    endless = {"optimizer.schedule": "inverse_sqrt"}
    claim(tmp_path / "run", identity(steps=24, **endless))
    claim(tmp_path / "run", identity(steps=30, log_every=3, checkpoint_every=7, **endless))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["steps"] == 30
    with pytest.raises(ConfigError, match=r"holds a run with config\.steps=30, but this run has 29"):
        claim(tmp_path / "run", identity(steps=29, **endless))
    decaying = endless | {"optimizer.decay_share": 0.5}
    claim(tmp_path / "decaying", identity(steps=24, **decaying))
    with pytest.raises(ConfigError, match=r"holds a run with config\.steps=24, but this run has 30"):
        claim(tmp_path / "decaying", identity(steps=30, **decaying))
    claim(tmp_path / "cosine", identity(steps=24))
    with pytest.raises(ConfigError, match=r"holds a run with config\.steps=24, but this run has 30"):
        claim(tmp_path / "cosine", identity(steps=30))


def test_a_field_that_is_added_leaves_the_folder_the_run_s(tmp_path):
    path = tmp_path / "run" / "run.json"
    claim(tmp_path / "run", identity())
    stored = json.loads(path.read_text())
    # As a version wrote it that had neither field.
    del stored["config"]["seed"], stored["config"]["model"]["dropout"]
    path.write_text(json.dumps(stored))
    claim(tmp_path / "run", identity())
    with pytest.raises(ConfigError, match=r"config\.seed=0, but this run has 3"):
        claim(tmp_path / "run", identity(seed=3))


def test_a_folder_is_of_one_process_while_that_lives(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(workdir), json.dumps(identity())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(ConfigError, match="run', where another process trains a run; accepted: another dir"):
                claim(workdir, identity())
        finally:
            other.kill()
    claim(workdir, identity())


def test_nothing_is_written_where_the_run_is_unknown(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"which has metrics.jsonl but no run.json"):
        claim(tmp_path, identity())
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
