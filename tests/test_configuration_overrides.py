"""Assignments of `--set`: text for fields of a nested configuration."""

import copy

import pytest

from moe_jax.configuration import ConfigError, override
from moe_jax.training.config import TrainConfig
from tests.configurations import GOOD, changed


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("steps=3", ("steps",), 3),
        ("optimizer.learning_rate=1e-3", ("optimizer", "learning_rate"), 1e-3),
        ("model.moe_layers=(1, 3)", ("model", "moe_layers"), (1, 3)),
        ("model.moe_layers=()", ("model", "moe_layers"), ()),
        ("model.moe.capacity_factor=None", ("model", "moe", "capacity_factor"), None),
        ("model.moe.router=gshard", ("model", "moe", "router"), "gshard"),
        ("model.moe.router.second_policy=all", ("model", "moe", "router", "second_policy"), "all"),
        ("data.corpus=text_files:/a=b/*.txt", ("data", "corpus"), "text_files:/a=b/*.txt"),
        ("data.tokenizer=bpe:512", ("data", "tokenizer"), "bpe:512"),
        ("name=", ("name",), ""),
        ("name={[]: 1}", ("name",), "{[]: 1}"),
        ("model.scan_layers=True", ("model", "scan_layers"), True),
    ],
)
def test_override(assignment, path, value):
    before = copy.deepcopy(GOOD)
    result = override(GOOD, [assignment])
    for name in path:
        result = result[name]
    assert result == value
    assert type(result) is type(value)
    assert before == GOOD


@pytest.mark.parametrize("assignment", ["steps", "=3", ""])
def test_override_without_a_key_or_a_value_is_refused(assignment):
    with pytest.raises(ConfigError, match=f"^--set is '{assignment}'; accepted: key=value, for example"):
        override(GOOD, [assignment])


def test_overrides_apply_in_order_and_misspelt_keys_reach_the_check():
    assert override(GOOD, ["steps=3", "steps=4"])["steps"] == 4
    with pytest.raises(ConfigError, match=r"^model\.mo is not a field; accepted: .* did you mean 'moe'\?"):
        TrainConfig.from_dict(override(GOOD, ["model.mo.k=1"]))
    with pytest.raises(ConfigError, match=r"^steps is \{'k': 1\}; accepted: int"):
        TrainConfig.from_dict(override(GOOD, ["steps.k=1"]))


def test_override_reaches_into_a_list_and_into_a_kind():
    variants = [{"layers": (0,), "attention": {"heads": 2}}]
    values = changed({"model.variants": variants, "model.moe.router": "deepseek", "model.moe.k": 2})
    values = override(values, ["model.variants.0.attention.kv_heads=1", "model.moe.router.num_groups=2"])
    config = TrainConfig.from_dict(values)
    assert (config.model.layer(0).attention.heads, config.model.layer(0).attention.kv_heads) == (2, 1)
    assert config.model.layer(1).attention.heads == 4
    assert config.model.moe.router.num_groups == 2
    with pytest.raises(ConfigError, match=r"^--set model.variants is '1'; accepted: an index below 1$"):
        override(values, ["model.variants.1.ffn_dim=8"])
