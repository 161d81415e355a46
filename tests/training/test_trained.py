"""A run is read from its folder, also while it trains."""

import subprocess
import sys
from pathlib import Path

from moe_jax.training.loop import train
from tests.training.tiny_runs import tiny_config, write_corpus

READ = """
import sys
from pathlib import Path
from moe_jax.configuration import ConfigError
from moe_jax.training.trained import load_run
print("ready", flush=True)
steps = []
while not steps or steps[-1] < int(sys.argv[2]):
    try:
        steps.append(int(load_run(Path(sys.argv[1])).state.step))
    except ConfigError:
        pass  # There is no checkpoint yet.
print(len(set(steps)), flush=True)
"""


def test_a_run_is_read_while_it_trains(tmp_path, monkeypatch):
    """Another process reads it again and again, and disturbs neither its checkpoints nor its metrics."""
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    sets = {"checkpoint_every": 1, "steps": 40, "eval_every": 40}
    config = tiny_config(write_corpus(tmp_path / "text"), sets)
    train(config, tmp_path / "alone", progress=False)
    command = [sys.executable, "-c", READ, str(tmp_path / "read"), str(config.steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as reader:
        try:
            assert reader.stdout.readline() == "ready\n"
            train(config, tmp_path / "read", progress=False)
            read = int(reader.communicate(timeout=120)[0])
        finally:
            reader.kill()
    assert reader.returncode == 0
    assert read >= 2
    alone, beside = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("alone", "read"))
    assert alone == beside
