"""Options of every router: each changes what is routed, and what does not go together is refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.layers.moe import MoEConfig
from moe_jax.routing import ROUTERS, Router
from tests.comparison import assert_close
from tests.routing import routers
from tests.routing.routers import (
    OPTIONS,
    K,
    build,
    route,
    state_after,
    variables,
)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_option_changes_what_is_routed(name, options):
    """The default and every other option differ: in the weights of training, where capacity binds, or in the state."""
    others = [other for other_name, other in [*OPTIONS, (name, {})] if other_name == name and other != options]

    def outcome(options):
        router = build(name, 0.75, training=True, **options)
        values = variables(router)
        assignment, sown = route(router, routers.tokens(2, 1.1), values)
        state = values.get("router_state", {})
        return [assignment.combine_weights(), *jax.tree.leaves(state_after(router, state, sown) if state else {})]

    ours = outcome(options)
    for other in others:
        theirs = outcome(other)
        same = len(ours) == len(theirs) and all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))
        assert not same, other


def options_of(router):
    return {field.name for field in dataclasses.fields(router)}


def test_every_option_is_tested():
    """Rates of a state's update and the width of its first value are tested where that update is, starts below."""
    elsewhere = {("quantile", "rate"), ("remoe", "growth"), ("remoe", "start"), ("hierarchical", "groups")}
    elsewhere |= {("deepseek", "groups_per_token"), ("switch", "init_std"), ("gshard", "init_std")}
    tested = {(name, field) for name, options in OPTIONS for field in options}
    declared = {(name, field) for name, router in ROUTERS.items() for field in options_of(router)}
    assert declared - tested == elsewhere


@pytest.mark.parametrize("name", ["switch", "gshard"])
def test_a_projection_starts_as_wide_as_it_is_told(name):
    tokens = routers.tokens()
    tokens = tokens.replace(x=jnp.tile(tokens.x, (1, 1, 100)))
    for std in (0.02, 0.5):
        kernel = build(name, init_std=std).init({"params": jax.random.key(0), "routing": jax.random.key(0)}, tokens)
        assert_close(jnp.std(kernel["params"]["kernel"]), std, 0.1)


def test_classes_say_what_they_are():
    for name, router in ROUTERS.items():
        assert issubclass(router, Router)
        assert "__dataclass_fields__" in vars(router), f"{name}: a dataclass, or its fields would be no options"
        assert router.paper
        assert 1991 <= router.year <= 2026, name
        assert all(coefficient >= 0 for coefficient in router.losses.values())
        # Python 3.13 takes the common indentation away.
        assert all(re.search(rf"^ +{field}: ", router.__doc__, re.MULTILINE) for field in options_of(router)), name
        assert hash(router()) == hash(router())


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("hash", "batch", r"^loss_level is 'batch'; accepted: None, with router 'hash'"),
        ("hierarchical", "group", r"^loss_level is 'group'; accepted: batch, with router 'hierarchical'"),
    ],
)
def test_a_level_without_a_loss_is_refused(name, level, says):
    with pytest.raises(ConfigError, match=says):
        MoEConfig(num_experts=4, router=name, k=K[name], capacity_factor=None, loss_level=level)


ONE = {"renormalize": False}


@pytest.mark.parametrize(
    ("name", "k", "factor", "options", "losses", "says"),
    [
        ("switch", 2, 1.0, {}, {}, r"^k is 2; accepted: 1, with router 'switch'"),
        ("dense_mixture", 2, None, {}, {}, r"^k is 2; accepted: 4, with router 'dense_mixture'"),
        ("base", 1, 1.25, {}, {}, r"^capacity_factor is 1\.25; accepted: None, with router 'base'"),
        ("top_k", 2, None, {"scor": "sigmoid"}, {}, r"^router\.scor is not a field.*did you mean 'score'"),
        (
            "top_k",
            2,
            None,
            {},
            {"load_loss": 1.0},
            r"^losses is 'load_loss'; accepted: losses of router 'top_k': bal",
        ),
        ("top_k", 2, None, {}, {"z_loss": -1.0}, r"^losses\.z_loss is -1\.0; accepted: a number of at least 0"),
        ("switch", 1, 1.0, {"jitter": 1.5}, {}, r"^router\.jitter is 1\.5"),
        ("switch", 1, 1.0, {"dropout": 1.0}, {}, r"^router\.dropout is 1\.0"),
        ("switch", 1, 1.0, {"rounds": 5}, {}, r"^router\.rounds is 5; accepted: 1 to num_experts \(4\)"),
        ("switch", 1, 1.0, {"rounds": 2, "exploration": "sample"}, {}, r"rounds is 2; accepted: 1, with another"),
        ("deepseek", 2, None, {"num_groups": 3}, {}, r"num_groups is 3; accepted: a divisor of num_experts \(4\)"),
        ("deepseek", 2, None, {"groups_per_token": 2}, {}, r"groups_per_token is 2; accepted: 1 to num_groups"),
        ("deepseek", 2, None, {"num_groups": 4, "group_score": "max"}, {}, r"enough groups for k=2 experts"),
        ("top_k", 1, None, {}, {}, r"renormalize is True; accepted: False, with k=1"),
        ("deepseek", 1, None, {}, {}, r"renormalize is True; accepted: False, with k=1"),
        ("deepseek", 1, None, ONE | {"num_groups": 4}, {}, r"groups of two experts or more, with 'top2_sum'"),
        ("deepseek", 2, None, {"scale": 0.0}, {}, r"scale is 0\.0; accepted: a positive number"),
        ("expert_choice", 2, 1.0, {"most": 1}, {}, r"most is 1; accepted: k \(2\) to num_experts"),
        ("expert_choice", 2, 1.0, {"most": 2, "among": "seen"}, {}, r"most is 2; accepted: None"),
        ("expert_choice", 2, 1.0, {"entropy": 0.0}, {}, r"entropy is 0\.0; accepted: a positive number"),
        ("expert_choice", 2, 1.0, {"iterations": 0}, {}, r"iterations is 0; accepted: an integer of at least 1"),
        ("hash", 1, 1.0, {"by": "balanced"}, {}, r"counts is \(\); accepted: the count of each id"),
        ("hierarchical", 2, None, {"groups": 3}, {}, r"groups is 3; accepted: a divisor of num_experts"),
        ("hierarchical", 3, None, {}, {}, r"outer_k is 2; accepted: a divisor of k \(3\)"),
        ("hierarchical", 3, None, {"outer_k": 1}, {}, r"outer_k is 1; accepted: enough groups for k=3 experts; these"),
        (
            "hierarchical",
            3,
            None,
            {"outer_k": 3},
            {},
            r"outer_k is 3; accepted: 1 to groups \(2\)",
        ),
        ("hierarchical", 2, None, {"outer": "swich"}, {}, r"outer is 'swich'; accepted: .*did you mean 'switch'"),
        ("hierarchical", 2, None, {"outer": "switch"}, {}, r"^router\.outer\.k is 2; accepted: 1, with"),
        ("hierarchical", 2, None, {"inner": {"kind": "switch", "x": 1}}, {}, r"^router\.inner\.x is not a f"),
        ("hierarchical", 2, None, {"outer": "hierarchical"}, {}, r"outer is 'hierarchical'; accepted: a router of one"),
        (
            "hierarchical",
            2,
            None,
            {"inner": "soft_moe"},
            {},
            r"inner is 'soft_moe'; accepted: a router of one level that",
        ),
        ("remoe", 2, None, {"growth": 1.0}, {}, r"growth is 1\.0; accepted: a number above 1"),
        ("quantile", 2, None, {"rate": 0.0}, {}, r"rate is 0\.0; accepted: above 0, to 1"),
        ("base", 1, None, {"tolerance": 0.0}, {}, r"tolerance is 0\.0; accepted: a number from 4e-08 to below 1"),
        ("sinkhorn", 2, None, {"iterations": 0}, {}, r"iterations is 0; accepted: an integer of at least 1"),
        ("sparse_mixer", 2, None, {"tolerance": 0.0}, {}, r"tolerance is 0\.0; accepted: a positive number"),
        ("st_moe", 2, None, {"threshold": -0.1}, {}, r"threshold is -0\.1; accepted: a number of at least 0"),
    ],
)
def test_what_a_router_cannot_do_is_refused_by_name(name, k, factor, options, losses, says):
    with pytest.raises(ConfigError, match=says):
        MoEConfig(num_experts=4, router={"kind": name} | options, k=k, capacity_factor=factor, losses=losses)
