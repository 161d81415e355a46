"""The examples in README and CONTRIBUTING run, and their links lead somewhere."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.cli import cli_parser, load_config
from moe_jax.configuration import override
from moe_jax.routing.router import Tokens
from moe_jax.training.config import TrainConfig

ROOT = Path(__file__).parents[1]


def run_example(name):
    """The names that the first Python example of a document defines."""
    example, *_ = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    names = {}
    exec(compile(example, name, "exec"), names)
    return names


def test_the_example_of_the_readme_runs(capsys):
    run_example("README.md")
    assert "(1, 8, 16)" in capsys.readouterr().out


def test_the_router_of_contributing_routes():
    router = run_example("CONTRIBUTING.md")["SecondBest"]()
    logits = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    tokens = Tokens(x=jnp.ones((2, 6, 3)), valid=jnp.ones((2, 6), bool))
    assignment, losses = router.decide(jnp.asarray(logits), tokens, SimpleNamespace(capacity=6))
    np.testing.assert_array_equal(assignment.expert, np.argsort(logits)[..., -2])
    assert assignment.kept.all()
    assert losses == {}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def commands_of_training():
    """Each `moe_jax train` in the README, as its words."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if "-m moe_jax train" in line]


@pytest.mark.parametrize("words", commands_of_training(), ids=lambda words: words[words.index("--workdir") + 1])
def test_commands_of_the_readme_name_runs_that_can_be_built(words):
    options = cli_parser().parse_args(words[words.index("train") :])
    config = TrainConfig.from_dict(override(load_config(str(ROOT / options.config)), options.set))
    assert config.mesh.size in (1, 8, 32)
