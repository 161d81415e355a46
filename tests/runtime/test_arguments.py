"""Masks and indices of any integer type: the results of bool and int32, or a refusal that names the argument."""

import ast
import dataclasses
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Int

from moe_jax.configuration import ConfigError
from moe_jax.experts.apply import apply_experts
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.plan import plan_here
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.models.language_model import make_model
from moe_jax.native.library import call, is_installed
from moe_jax.native.sorting import counting_sort
from moe_jax.routing.switch import switch
from moe_jax.runtime.arguments import typed
from tests.comparison import assert_close, assert_trees_equal
from tests.models import small
from tests.routing import routers

ROOT = Path(__file__).parents[2] / "moe_jax"
MASKS = ("int8", "int32", "uint8", "uint32")
INDICES = ("int8", "int16", "uint8", "uint32")


@typed
def pick(x: Float[Array, "N"], index: Int[Array, "M"], mask: Bool[Array, "M"] | None = None) -> Float[Array, "M"]:
    assert index.dtype == jnp.int32
    assert mask is None or mask.dtype == bool
    return x[index] if mask is None else jnp.where(mask, x[index], 0.0)


@pytest.mark.parametrize("type_", [*INDICES, "int64"])
def test_an_argument_becomes_what_its_annotation_says(type_):
    x, index = jnp.arange(3.0), np.array([2, 0], type_)
    np.testing.assert_array_equal(pick(x, index), [2, 0])
    np.testing.assert_array_equal(pick(x, index=index, mask=np.array([4, 0], type_)), [2, 0])
    np.testing.assert_array_equal(jax.jit(pick)(x, jnp.asarray(index), jnp.array([0, 1], jnp.int8)), [0, 0])


def test_floats_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"^type of index is 'float32'; accepted: integers$"):
        pick(jnp.arange(3.0), jnp.ones(2))
    with pytest.raises(ConfigError, match=r"^type of index is 'bool'; accepted: integers$"):
        pick(jnp.arange(3.0), jnp.ones(2, bool))
    with pytest.raises(ConfigError, match=r"^type of mask is 'float32'; accepted: bool, or integers with 0 for false$"):
        pick(jnp.arange(3.0), jnp.ones(2, int), jnp.ones(2))


@pytest.mark.parametrize("type_", ["uint32", "int64", "uint64"])
def test_integers_that_int32_cannot_hold_are_refused(type_):
    """Segments 1 and 2**32 + 1 would be one."""
    large = min(2**32 + 1, np.iinfo(type_).max)
    with pytest.raises(ConfigError, match=rf"^index is {large}; accepted: integers from -2\*\*31 to"):
        pick(jnp.arange(3.0), np.array([1, large], type_))
    with jax.enable_x64(True), pytest.raises(ConfigError, match=rf"^index is {large}"):
        pick(jnp.arange(3.0), jnp.array([1, large], type_))


def doors():
    """Public functions of routing, sorting and masks, and calls of modules, that take a mask or an index, as syntax."""
    folders = [ROOT / folder for folder in ("routing", "native", "layers/attention", "models")]
    for path in [*itertools.chain(*(sorted(folder.glob("*.py")) for folder in folders)), ROOT / "layers/moe.py"]:
        tree = ast.parse(path.read_text())
        methods = [node for kind in tree.body if isinstance(kind, ast.ClassDef) for node in kind.body]
        calls = [node for node in methods if getattr(node, "name", "") in ("__call__", "nats")]
        public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        for node in public + calls:
            annotations = [ast.unparse(argument.annotation) for argument in node.args.args if argument.annotation]
            if any(re.match(r"(Bool|Int|Integer)\[Array, ", annotation) for annotation in annotations):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def test_every_door_converts_its_arguments():
    found = {name: [ast.unparse(one) for one in node.decorator_list][:1] for name, node in doors()}
    assert len(found) > 25
    assert [name for name, first in found.items() if first != ["typed"]] == []


@pytest.mark.parametrize("name", routers.K)
def test_a_router_s_tokens_may_have_any_integers(name):
    tokens = routers.tokens()
    router = routers.build(name)
    variables = routers.variables(router)
    expected = routers.route(router, tokens, variables)
    for mask, index in zip(MASKS, INDICES, strict=True):
        others = {field: getattr(tokens, field).astype(index) for field in ("ids", "positions")}
        actual = routers.route(router, tokens.replace(valid=tokens.valid.astype(mask), **others), variables)
        assert_trees_equal(actual, expected)


DRAWING = [
    *(("uniform_random", {}), ("noisy_top_k", {}), ("vmoe", {}), ("sparse_mixer", {}), ("st_moe", {"threshold": 0.9})),
    *(("switch", {"exploration": how}) for how in ("sample", "jitter", "dropout")),
    ("gshard", {"second_policy": "random", "second_threshold": 0.9}),
]


@pytest.mark.parametrize(("name", "options"), DRAWING)
def test_64_bit_types_change_no_draw(name, options):
    router, tokens = routers.build(name, 0.75, training=True, **options), routers.tokens(2, 1.1)
    variables = routers.variables(router)
    expected, _ = routers.apply(router, tokens, variables.get("params"), variables.get("router_state"))
    with jax.enable_x64(True):
        actual, _ = routers.apply(router, tokens, variables.get("params"), variables.get("router_state"))
    assert_trees_equal(actual, expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
def test_the_layer_with_a_mask_of_integers(execution, wide):
    """The example of a user whose mask of 0 and 1 was read as bytes: 2.17% of the assignments are dropped."""
    config = MoEConfig(8, router="top_k", k=2, capacity_factor=1.0, expert_dim=8, ffn="relu", execution=execution)
    layer, rng = MoE(config), np.random.default_rng(0)
    x, valid = jnp.asarray(rng.normal(size=(2, 64, 16)), jnp.float32), jnp.asarray(rng.random((2, 64)) < 0.7)
    variables = layer.init(jax.random.key(0), x, valid)
    expected, sown = layer.apply(variables, x, valid, mutable=["routing"])
    oracle = MoE(dataclasses.replace(config, execution="oracle")).apply(variables, x, valid)
    assert_close(expected, oracle)
    with jax.enable_x64(wide):
        for mask in [*MASKS, *(["int64"] if wide else [])]:
            y, other = layer.apply(variables, x, valid.astype(mask), mutable=["routing"])
            assert_close(y, oracle)
            assert_trees_equal(
                other["routing"]["router"]["fraction_dropped"].value.astype(jnp.float32),
                sown["routing"]["router"]["fraction_dropped"].value,
            )
        with pytest.raises(ConfigError, match="type of token_valid is 'float32'"):
            layer.apply(variables, x, valid.astype(np.float32))


@pytest.mark.parametrize("execution", sorted(set(EXECUTIONS) - {"oracle"}))
def test_an_assignment_made_by_hand(execution):
    """With the types that NumPy gives it."""
    rng = np.random.default_rng(0)
    x, logits = (
        jnp.asarray(rng.normal(size=(2, 12, 6)), jnp.float32),
        jnp.asarray(rng.normal(size=(2, 12, 4)), jnp.float32),
    )
    assignment = switch(logits, jnp.asarray(rng.random((2, 12)) < 0.8), 3)
    shapes = FFN_KINDS["relu"].shapes(6, 8)
    params = {name: jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32) for name, shape in shapes.items()}
    expected = apply_experts(plan_here("oracle"), x, assignment, params, FFN_KINDS["relu"])[0]
    by_hand = assignment.replace(
        token=assignment.token.astype(jnp.uint8),
        expert=assignment.expert.astype(jnp.int8),
        seat=assignment.seat.astype(jnp.int16),
        requested=assignment.requested.astype(jnp.int32),
    )
    assert_close(apply_experts(plan_here(execution), x, by_hand, params, FFN_KINDS["relu"])[0], expected)


def test_a_model_s_texts_may_have_any_integers():
    model = make_model(small.config({"router": "hash"}))
    tokens = np.random.default_rng(0).integers(0, small.VOCAB, (2, 12))
    texts = tokens, np.tile(np.arange(12), (2, 1)), np.tile(np.arange(12) >= 6, (2, 1)) + 1
    narrow = [jnp.asarray(text, jnp.int32) for text in texts]
    variables = model.init(jax.random.key(0), *narrow)
    expected = model.apply(variables, *narrow)
    for index in INDICES:
        assert_close(model.apply(variables, *(jnp.asarray(text, index) for text in texts)), expected)
    with jax.enable_x64(True):
        assert_close(model.apply(variables, *(jnp.asarray(text, jnp.int64) for text in texts)), expected)


def test_native_code_reads_no_other_type():
    assert is_installed()
    key = jnp.array([1, 0, 1])
    with pytest.raises(TypeError, match=r"operand 1 of native handler 'rank' is int32, but it reads bool"):
        call("rank", [(key.shape, jnp.int32)], key, key)
    with pytest.raises(TypeError, match=r"operand 0 of native handler 'sort' is int16, but it reads int32"):
        call("sort", [(key.shape, jnp.int32)] * 3, key.astype(jnp.int16))
    for index in INDICES:
        place, element, sizes = counting_sort(key.astype(index), 2)
        assert (place.tolist(), element.tolist(), sizes.tolist()) == ([1, 0, 2], [1, 0, 2], [1, 2])
