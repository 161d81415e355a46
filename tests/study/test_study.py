"""A study as one record: its models and what they are compared with."""

import pytest

from moe_jax.configuration import ConfigError
from moe_jax.study.study import Model, Preset, Study

MODELS = (
    Model("dense", "dense", baseline="dense"),
    Model("switch", "switch", baseline="dense"),
    Model("masked/dense", "dense", baseline="masked/dense", group="masked"),
    Model("masked/base", "base", baseline="masked/dense", group="masked"),
)


def study(models=MODELS):
    return Study(name="walks", models=models, presets={}, report=str)


def chosen(names, models=None):
    return [model.key for model in study().chosen(Preset(str, 1, models=models), names)]


def test_models_are_chosen_by_name_in_the_study_s_order():
    assert chosen([]) == [model.key for model in MODELS]
    assert chosen([], ("switch", "dense")) == ["dense", "switch"]
    # Any of the study's, not only the preset's.
    assert chosen(["switch", "dense"], ("dense",)) == ["dense", "switch", "masked/dense"]


@pytest.mark.parametrize("names", [["switch"], ["base", "switch"], ["other study's"]])
def test_a_model_comes_with_what_it_is_compared_with(names):
    with pytest.raises(ConfigError, match="accepted: dense, that others are compared with, among them"):
        chosen(names)
    assert study().with_baselines(["base"], "--routers") == ["dense", "base"]


def test_a_study_s_models_differ_and_have_their_baselines():
    with pytest.raises(ConfigError, match="keys that differ"):
        study((*MODELS, MODELS[0]))
    with pytest.raises(ConfigError, match="baseline of switch is 'dense'"):
        study(MODELS[1:])
