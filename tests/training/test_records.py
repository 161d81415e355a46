"""A run's folder is its own, also after a later version has given its configuration another field."""

import json

import pytest

from moe_jax.configuration import ConfigError, to_dict
from moe_jax.training.records import claim_workdir
from tests.training.tiny_runs import tiny_config


def identity(**sets):
    return {"config": to_dict(tiny_config(sets=sets)), "corpus": {"name": "text", "digest": "5eed"}}


def test_a_folder_is_of_one_run(tmp_path):
    claim_workdir(tmp_path / "run", identity())
    claim_workdir(tmp_path / "run", identity())
    with pytest.raises(ConfigError, match=r"holds a run with config\.steps=\d+, but this run has 7"):
        claim_workdir(tmp_path / "run", identity(steps=7))


def test_a_field_that_is_added_leaves_the_folder_the_run_s(tmp_path):
    path = tmp_path / "run" / "run.json"
    claim_workdir(tmp_path / "run", identity())
    stored = json.loads(path.read_text())
    # As a version wrote it that had neither field.
    del stored["config"]["seed"], stored["config"]["model"]["dropout"]
    path.write_text(json.dumps(stored))
    claim_workdir(tmp_path / "run", identity())
    with pytest.raises(ConfigError, match=r"config\.seed=0, but this run has 3"):
        claim_workdir(tmp_path / "run", identity(seed=3))
