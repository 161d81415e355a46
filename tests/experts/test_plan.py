"""A plan is what is asked for, or refused; `auto` goes by platform and shape, and the plan says what it chose."""

import re

import jax
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.parallel.strategies import STRATEGIES, ParallelConfig
from moe_jax.experts.plan import Plan, plan_for, plan_here
from tests.meshes import make_mesh


def plan(execution="auto", kernel="auto", strategy="auto", rows=1.25, platform="cpu", devices=8):
    return plan_for(execution, kernel, ParallelConfig(strategy), rows, platform, devices)


@pytest.mark.parametrize(
    ("execution", "platform", "devices", "rows", "expected"),
    [
        ("padded", "cpu", 8, 1.25, "all_to_all"),
        ("padded", "gpu", 8, 2.5, "all_to_all"),
        ("padded", "cpu", 1, 1.25, "gather"),
        ("padded", "cpu", 8, 8.0, "gather"),
        ("dropless", "cpu", 8, 2.0, "dropless"),
        ("dropless", "gpu", 8, 2.0, "dropless"),
        ("dropless", "tpu", 8, 2.0, "ragged"),
        ("one_hot", "tpu", 8, 1.0, "gather"),
    ],
)
def test_auto_goes_by_platform_and_shape(execution, platform, devices, rows, expected):
    assert plan(execution, rows=rows, platform=platform, devices=devices).strategy == expected


@pytest.mark.parametrize(
    ("platform", "devices", "expected"),
    [
        ("cpu", None, ("dropless", "native", None)),
        ("gpu", None, ("padded", None, None)),
        ("tpu", None, ("padded", None, None)),
        ("cpu", 8, ("padded", None, "all_to_all")),
        ("tpu", 8, ("padded", None, "all_to_all")),
    ],
)
def test_auto_takes_the_fastest_execution(platform, devices, expected):
    made = plan(platform=platform, devices=devices)
    assert (made.execution, made.kernel, made.strategy) == expected
    assert made.chosen == {"execution", "kernel", "strategy"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"strategy": "dropless"}, ("dropless", "native", "dropless")),
        ({"strategy": "ragged", "platform": "gpu"}, ("dropless", "ragged_dot", "ragged")),
        ({"strategy": "gather"}, ("padded", None, "gather")),
        ({"kernel": "blocks"}, ("dropless", "blocks", "dropless")),
        ({"kernel": "blocks", "platform": "gpu", "devices": None}, ("dropless", "blocks", None)),
    ],
)
def test_auto_goes_with_what_is_named(asked, expected):
    made = plan(**asked)
    assert (made.execution, made.kernel, made.strategy) == expected
    assert "execution" in made.chosen
    assert not made.chosen & asked.keys()


def test_what_is_named_is_run():
    """Each execution with each strategy that fits it; on one device no strategy is needed."""
    for execution in EXECUTIONS:
        for name, strategy in STRATEGIES.items():
            if strategy.fits(execution, "tpu"):
                made = plan(execution, strategy=name, platform="tpu")
                assert (made.execution, made.strategy, made.chosen) == (execution, name, {"kernel"})
                assert plan(execution, strategy=name, devices=None).strategy is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"execution": "padded", "strategy": "dropless"},
            "parallel.strategy is 'dropless', which needs execution='dropless', but execution is 'padded'; use 'auto', "
            "'gather' or 'all_to_all', or change execution",
        ),
        (
            {"execution": "dropless", "strategy": "all_to_all"},
            "parallel.strategy is 'all_to_all', which needs execution='padded', but execution is 'dropless'; use "
            "'auto', 'gather' or 'dropless', or change execution",
        ),
        (
            {"execution": "dropless", "strategy": "ragged"},
            "parallel.strategy is 'ragged', which platform 'cpu' cannot run; use 'auto', 'gather' or 'dropless'",
        ),
        (
            {"execution": "padded", "kernel": "native"},
            "kernel is 'native', but execution 'padded' has no kernels; use 'auto', or execution 'dropless'",
        ),
        (
            {"strategy": "all_to_all", "kernel": "native"},
            "kernel is 'native', but execution 'padded' has no kernels; use 'auto', or execution 'dropless'",
        ),
        (
            {"kernel": "megablox", "devices": None},
            "kernel is 'megablox', which platform 'cpu' does not have (it needs a TPU); use 'auto', 'native', 'blocks' "
            "or 'ragged_dot'",
        ),
        (
            {"execution": "paded"},
            f"execution is 'paded'; accepted: {', '.join(sorted({'auto', *EXECUTIONS}))}; did you mean 'padded'?",
        ),
    ],
)
def test_what_cannot_run_is_refused(asked, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        plan(**asked)


def test_a_plan_describes_itself_in_one_line():
    assert str(Plan("padded")) == "experts run by 'padded'"
    assert str(plan(devices=None)) == (
        "experts run by 'dropless' (chosen by 'auto') with kernel 'native' (chosen by 'auto')"
    )
    assert str(plan("dropless", "blocks", platform="tpu")) == (
        "experts run by 'dropless' with kernel 'blocks', reached by 'ragged' (chosen by 'auto')"
    )


def test_a_plan_is_made_for_the_mesh_around_it():
    """Its platform, and its devices on the expert axis."""
    assert plan_here() == plan(devices=None)
    parallel = ParallelConfig("dropless", wire="bfloat16", slack=2.0)
    with jax.set_mesh(make_mesh("2x4 data-expert")):
        assert plan_here() == plan(devices=4)
        made = plan_here("dropless", parallel=parallel)
    assert made == Plan("dropless", "native", "dropless", "bfloat16", 2.0, frozenset({"kernel"}))


def test_a_mesh_of_other_axes_is_left_to_xla():
    mesh = jax.make_mesh((8,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    message = r"mesh is \('expert',\); accepted: a mesh with the axes data, fsdp, expert, tensor, or strategy='auto'"
    with jax.set_mesh(mesh):
        assert plan_here() == plan(devices=None)
        with pytest.raises(ConfigError, match=message):
            plan_here(parallel=ParallelConfig("gather"))


def test_explicit_axes_are_refused_outside_the_layer():
    mesh = jax.make_mesh((8,), ("expert",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match=r"^axis types of the mesh is .*; accepted: Auto"):
        plan_here()
