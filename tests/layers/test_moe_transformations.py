"""The layer under JAX's transformations: derivatives of any order and mode, export, and batches without tokens.

B batch, S sequence, D model width, F expert width, E experts.
"""

import functools
import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from flax.traverse_util import unflatten_dict

from moe_jax.configuration import ConfigError
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.native.library import export_checks
from moe_jax.routing import ROUTERS
from moe_jax.routing.statistics import values
from tests.comparison import assert_close, assert_trees_close, assert_trees_equal
from tests.meshes import make_mesh
from tests.routing.routers import K

B, S, D, F, E = 2, 8, 5, 8, 4
# Ways of running experts; the first is made of nothing but operations of JAX.
WAYS = {name: {"execution": name} for name in ("one_hot", "padded")}
WAYS |= {name: {"execution": "dropless", "kernel": name} for name in ("native", "blocks", "ragged_dot")}
FAST = [name for name in WAYS if name != "one_hot"]
X = jax.random.normal(jax.random.key(0), (B, S, D))


def layer(router="top_k", k=2, **fields):
    """A layer whose capacity drops some assignments."""
    return MoE(MoEConfig(E, router=router, k=k, expert_dim=F, ffn="swiglu", **{"capacity_factor": 1.0} | fields))


def drawn(module, seed):
    """Parameters of two layers, of variance 1 / fan-in, and tokens."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)["params"]

    def draw(leaf):
        return jnp.asarray(rng.normal(size=(2, *leaf.shape)) / leaf.shape[-2] ** 0.5, leaf.dtype)

    return jax.tree.map(draw, shapes), jnp.asarray(rng.normal(size=X.shape), X.dtype)


@functools.cache
def derivatives(router, way):
    """Derivatives along one direction by each order and mode, of two layers; and a Hessian, a batch of them, of one."""
    module = layer(router, **WAYS[way])
    at, direction = drawn(module, 1), drawn(module, 2)

    def run_layer(x, params):
        y = module.apply({"params": params}, x)
        return y, jnp.sum(y * (1 + y))

    def loss(params, x):
        return jax.lax.scan(jax.checkpoint(run_layer), x, params)[1].sum()

    def along(*at):
        return jax.linearize(loss, *at)[1](*direction)

    def back_along(*at):
        products = jax.tree.map(jnp.vdot, jax.grad(loss, (0, 1))(*at), direction)
        return jax.tree.reduce(jnp.add, products)

    first = jax.tree.map(lambda leaf: leaf[0], at[0])

    def of_kernel(kernel):
        return run_layer(at[1], first | {"router": {"kernel": kernel}})[1]

    @jax.jit
    def run(*at):
        return {
            "forwards": along(*at),
            "forwards of backwards": jax.jvp(jax.grad(loss, (0, 1)), at, direction)[1],
            "backwards of backwards": jax.grad(back_along, (0, 1))(*at),
            "backwards of forwards": jax.grad(along, (0, 1))(*at),
            "hessian": jax.hessian(of_kernel)(first["router"]["kernel"]),
        }

    return run(*at)


@pytest.mark.parametrize(("way", "router"), [(way, "top_k") for way in FAST] + [("native", "expert_choice")])
def test_derivatives_of_any_order_and_mode(way, router):
    """With tokens whose number of experts is known, and with any number; through a scan that recomputes."""
    assert_trees_close(derivatives(router, way), derivatives(router, "one_hot"))


def test_derivatives_on_a_mesh():
    """Forwards of backwards, through the exchange between devices."""
    module = layer(group_size=2, execution="dropless", parallel=ParallelConfig("dropless"))
    variables = module.init(jax.random.key(0), X)
    direction = jax.tree.map(jnp.cos, variables["params"]), jnp.cos(X)

    @jax.jit
    def run(params, x):
        gradient = jax.grad(lambda params, x: jnp.sum(module.apply({"params": params}, x) ** 2), (0, 1))
        return jax.jvp(gradient, (params, x), direction)[1]

    expected = run(variables["params"], X)
    with jax.set_mesh(make_mesh("2x4 data-expert")):
        assert_trees_close(run(variables["params"], X), expected)


def exported(module, variables, platforms):
    """The layer for other platforms; a program that calls native code for CPUs says which calls it has."""
    program = jax.jit(lambda variables, x: module.apply(variables, x, mutable=["routing"])[0])
    checks = export_checks() if "cpu" in platforms else ()
    return jax.export.export(program, platforms=platforms, disabled_checks=checks)(variables, X)


@pytest.mark.parametrize("way", ["auto", "padded", "ragged_dot"])
def test_exported_for_another_platform(way):
    """For an accelerator alone without a call of native code for CPUs; for both with the values of this one."""
    module = layer(**WAYS.get(way, {}))
    variables = module.init(jax.random.key(0), X)
    for platform in ("cuda", "tpu"):
        program = exported(module, variables, [platform]).mlir_module()
        assert "moe_jax_" not in program
        grouped = {"padded": 0, "ragged_dot": 3, "auto": 3 if platform == "cuda" else 0}[way]
        assert program.count('"chlo.ragged_dot"') == grouped
        assert ("tpu_custom_call" in program) == (way == "auto" and platform == "tpu")
    both = exported(module, variables, ["cpu", "cuda"])
    assert "@moe_jax_rank" in both.mlir_module()
    assert_close(both.call(variables, X), layer(execution="oracle").apply(variables, X))


def test_a_named_kernel_is_not_exported_for_a_platform_that_lacks_it():
    module = layer(execution="dropless", kernel="native")
    variables = module.init(jax.random.key(0), X)
    with pytest.raises(ConfigError, match=r"^kernel is 'native', which platform 'gpu' does not have .*; use 'auto', "):
        exported(module, variables, ["cuda"])


def test_jax_names_the_native_calls_that_it_does_not_export_without_leave():
    variables = layer().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"(?s)custom calls whose targets have no compatibility.*moe_jax_"):
        jax.export.export(jax.jit(layer().apply), platforms=["cpu"])(variables, X)


def variables_of(wrapped):
    """The variables of a module of nnx, by the names of their Linen collections."""
    state = {path: (type(leaf).__name__, leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(wrapped))}
    named = {({"Param": "params"}.get(kind, kind), *path): value for path, (kind, value) in state.items()}
    return unflatten_dict({path: value for path, value in named.items() if not path[0].startswith("Rng")})


def test_as_a_module_of_nnx():
    """Output, gradient and metrics are those of Linen, and the router's state is there."""
    module = layer("deepseek")
    wrapped = nnx.jit(lambda: bridge.lazy_init(bridge.ToNNX(module, rngs=nnx.Rngs(0)), X))()
    variables = variables_of(wrapped)
    start = {name: variables[name] for name in ("params", "router_state")}
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, nnx_like(module))
    y, sown = module.apply(start, 2 * X, mutable=["routing"])
    np.testing.assert_array_equal(wrapped(2 * X, mutable=["routing"]), y)
    assert_trees_close(values(variables_of(wrapped)["routing"]), values(sown["routing"]))
    gradient = nnx.grad(lambda wrapped: jnp.sum(wrapped(X) ** 2))(wrapped)
    expected = jax.grad(lambda params: jnp.sum(module.apply(start | {"params": params}, X) ** 2))(start["params"])
    assert_trees_close(nnx.to_pure_dict(gradient), expected)


def nnx_like(module):
    """The shapes of the layer's variables but for its metrics."""
    variables = jax.eval_shape(module.init, jax.random.key(0), X)
    return {name: variables[name] for name in ("params", "router_state")}


@pytest.mark.parametrize("name", ROUTERS)
def test_no_tokens(name):
    """Every router takes no tokens, also where a layer starts, and has the metrics of any batch."""
    module = layer(name, K[name], capacity_factor=1.0 if ROUTERS[name].drops else None, group_size=S)
    rngs = {"params": jax.random.key(0), "routing": jax.random.key(1)}

    def run(x):
        text = jnp.zeros(x.shape[:2], jnp.int32)
        variables = module.init(rngs, x, ids=text, positions=text)
        y, sown = module.apply(variables, x, ids=text, positions=text, rngs=rngs, mutable=["routing"])
        return y, variables, values(sown["routing"])

    expected = jax.eval_shape(run, jnp.zeros((B, S, D)))
    for shape in ((0, S, D), (B, 0, D)):
        y, *others = jax.eval_shape(run, jnp.zeros(shape))
        assert y.shape == shape
        assert jax.tree.map(jnp.shape, others) == jax.tree.map(jnp.shape, list(expected[1:]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(B, S), (0, S)], ids=["padding", "nothing"])
def test_nothing_to_run(way, shape):
    """Zeros where padding is, gradients of zero, and metrics of a load of zero, of which nothing is dropped."""
    module, valid = layer(**WAYS[way]), jnp.zeros(shape, bool)
    params = jax.tree.map(lambda leaf: leaf[0], drawn(module, 0)[0])

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y, sown = module.apply({"params": params}, x, valid, mutable=["routing"])
            metrics = values(sown["routing"]["router"])
            return y.sum() + metrics["balance_loss"] + metrics["z_loss"], (y, metrics)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (_, (y, metrics)), gradients = run(params, jnp.ones((*shape, D)))
    assert y.shape == (*shape, D)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves((y, gradients)))
    # Each of 4 experts has a seat for half of the 2 * S assignments, whatever is there.
    expected = dict.fromkeys(metrics, 0.0) | {"load": np.zeros(E), "dead_experts": 1.0, "capacity_factor": 1.0}
    assert_trees_close(dict(metrics), expected)


def test_variables_and_modules_are_pickled_and_hashed():
    """A module with options, written as mappings and lists, is a static argument; its variables come back the same."""
    router = {"kind": "hash", "by": "balanced", "counts": [3, 2, 1]}
    module = layer(router, 1, losses={})
    assert module == pickle.loads(pickle.dumps(module)) == layer(router, 1, losses={})
    assert hash(module) == hash(layer(router, 1, losses={}))
    module = layer({"kind": "deepseek", "num_groups": 2})
    variables = module.init(jax.random.key(0), X)
    restored = pickle.loads(pickle.dumps(variables))
    assert_trees_equal(restored, variables)
    apply = jax.jit(lambda module, variables, x: module.apply(variables, x), static_argnums=0)
    y = apply(module, variables, X)
    np.testing.assert_array_equal(apply(layer({"kind": "deepseek", "num_groups": 2}), restored, X), y)
    assert apply._cache_size() == 1
    assert_close(y, module.apply(variables, X))
