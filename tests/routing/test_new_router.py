"""A router written as CONTRIBUTING says, in a file of its own, trains in a model: one file and one line."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.routing import ROUTERS, describe_routers
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.step import make_train_step
from tests.training.tiny_runs import first_state, random_batch, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The example of CONTRIBUTING as a module from a temporary file, and the line that names it."""
    example, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    path = tmp_path / "second_best.py"
    path.write_text(example)
    spec = importlib.util.spec_from_file_location("second_best", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "second_best", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(ROUTERS, "second_best", module.SecondBest)


SETS = {"model.moe.router": "second_best", "model.moe.k": 1}


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("execution", ["one_hot", "padded", "dropless"])
def test_it_trains_in_a_model(execution):
    config = tiny_config(sets=SETS | {"model.moe.execution": execution})
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = jax.jit(make_train_step(config, optimizer, make_schedule(config.optimizer, config.steps)))
    state = first_state(config, optimizer)
    new, metrics = step(state, random_batch())
    assert metrics["total_loss"] == pytest.approx(float(metrics["loss"] + 0.001 * metrics["z_loss"]))
    layer = f"layer_{config.model.moe_layers[0]}"
    before, after = (s.params[layer]["moe"]["router"]["kernel"] for s in (state, new))
    assert jnp.abs(after - before).max() > 0


@pytest.mark.usefixtures("added")
def test_it_is_listed_and_checked():
    (row,) = [row for row in describe_routers() if row["name"] == "second_best"]
    assert row["k"] == [1]
    assert row["causal"]
    assert row["losses"] == {"z_loss": 0.001}
    with pytest.raises(ConfigError, match=r"k is 2; accepted: 1, with router 'second_best'"):
        tiny_config(sets=SETS | {"model.moe.k": 2})
