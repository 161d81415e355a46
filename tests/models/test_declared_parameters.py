"""Declared parameters: for every kind of layer the tree that its module makes, divided over a mesh, counted, described.

A kind that is added to a table of kinds is tested here without another line, and fails where it lacks one of these.
"""

import math

import jax
import pytest

from moe_jax.accounting.flops import flops_per_token
from moe_jax.accounting.parameters import count_parameters
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.layers.attention import ATTENTIONS
from moe_jax.layers.norms import NORMS
from moe_jax.layers.positions import POSITIONS
from moe_jax.models.parameters import declare_parameters, init_params
from tests.models import small

KINDS = {"attention": ATTENTIONS, "positions": POSITIONS, "norm": NORMS}
EVERYWHERE = {"router": "switch", "places": ("feed_forward", "attention"), "shared_dim": 8, "shared_gate": True}
PAIR = {"architecture": "encoder_decoder"}

CONFIGS = {
    **{f"attention {name}": small.config(attention={"kind": name}) for name in ATTENTIONS},
    **{f"positions {name}": small.config(attention={"positions": name}, **PAIR) for name in POSITIONS},
    **{f"norm {name}": small.config(norm=name, **PAIR) for name in NORMS},
    **{f"network {name}": small.config(ffn=name) for name in FFN_KINDS},
    **{f"experts {name}": small.config({"ffn": name, "shared_dim": 8}) for name in FFN_KINDS},
    "everywhere": small.config(EVERYWHERE, **PAIR),
    "scanned": small.config(EVERYWHERE, num_layers=4, moe_layers=(1, 2, 3), scan_layers=True, tie_embeddings=True),
    "depth": small.config(depth={"layers": (1,)}),
    "two tables": small.config(
        attention={"positions": "t5"}, variants=[{"layers": (1,), "attention": {"heads": 2, "positions": "t5"}}]
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_make_what_is_declared(name):
    config = CONFIGS[name]
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    made = {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert made == {path: parameter.shape for path, parameter in declare_parameters(config).items()}
    assert count_parameters(config).total == sum(map(math.prod, made.values()))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mesh_divides_what_multiplies(name):
    """Every matrix is divided by some axis, but for routers; a vector of no expert is whole."""
    declared = declare_parameters(CONFIGS[name])
    for path, parameter in declared.items():
        assert len(parameter.axes) == len(parameter.shape)
        small_matrix = "router/" in path or "shared_gate" in path or "depth_kernel" in path
        if parameter.multiplies and not small_matrix:
            assert any(parameter.axes), path


@pytest.mark.parametrize("table", KINDS)
def test_kinds_are_described(table):
    for kind in KINDS[table].values():
        assert len(kind.__doc__ or "") > 20
        assert not kind.__doc__.startswith(f"{kind.__name__}("), "a dataclass without a docstring of its own"


def test_every_kind_has_flops():
    for name, config in CONFIGS.items():
        target = 6 if len(config.stacks) == 2 else 0
        assert flops_per_token(config, 12, target).forward > 0, name
