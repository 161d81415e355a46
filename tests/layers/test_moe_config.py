"""The mixture's configuration: the same check for a model and for a layer alone, and the parameters that it names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from moe_jax.configuration import ConfigError, build, to_dict
from moe_jax.experts.ffn import EXPERT_KINDS
from moe_jax.layers.mode import Mode
from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.routing import ROUTERS
from moe_jax.routing.deepseek import DeepSeek
from moe_jax.routing.switch import Switch
from tests.routing.routers import K

B, S, D, F, E = 2, 8, 6, 10, 4


def mixture(router="switch", options=None, **fields):
    """A mixture with any router of ROUTERS, and what it requires."""
    own = {"k": K[router], "capacity_factor": 1.0 if ROUTERS[router].drops else None, "group_size": S}
    own |= {"num_experts": E, "expert_dim": F, "ffn": "relu", "router": {"kind": router} | (options or {})}
    return MoEConfig(**own | fields)


def shapes(config):
    """The parameters that the module declares, by path; nothing is computed."""
    text = jnp.zeros((B, S), jnp.int32)
    rngs = {"params": jax.random.key(0), "routing": jax.random.key(0)}
    declared = jax.eval_shape(lambda: MoE(config).init(rngs, jnp.zeros((B, S, D)), ids=text, positions=text))
    return {path: leaf.shape for path, leaf in flatten_dict(declared["params"], sep="/").items()}


NAMED = {name: mixture(name) for name in ROUTERS}
NAMED |= {kind: mixture(ffn=kind) for kind in EXPERT_KINDS}
NAMED |= {"shared": mixture(shared_dim=7), "gated": mixture(shared_dim=7, shared_gate=True, ffn="geglu_scaled")}
NAMED |= {"biased": mixture("top_k", {"bias": True})}


@pytest.mark.parametrize("name", NAMED)
def test_the_module_declares_what_the_configuration_names(name):
    parameters = NAMED[name].parameters(D)
    assert {path: parameter.shape for path, parameter in parameters.items()} == shapes(NAMED[name])
    assert all(len(parameter.axes) == len(parameter.shape) for parameter in parameters.values())


def test_experts_are_divided_and_routers_are_not():
    """An expert's matrices by its axes; vectors by the axis of their width; a router is whole on every device."""
    parameters = mixture("top_k", {"bias": True}, ffn="gpt_oss", shared_dim=7, shared_gate=True).parameters(D)
    axes = {path: parameter.axes for path, parameter in parameters.items()}
    for name in ("gate", "up"):
        assert axes[f"experts_{name}"] == ("expert", "fsdp", "tensor")
        assert axes[f"experts_{name}_bias"] == ("expert", None, "tensor")
        assert axes[f"shared/{name}"] == ("fsdp", "tensor")
        assert axes[f"shared/{name}_bias"] == (None, None)
    assert axes["experts_down"] == ("expert", "tensor", "fsdp")
    assert axes["experts_down_bias"] == ("expert", None, "fsdp")
    assert axes["shared/down"] == ("tensor", "fsdp")
    assert axes["router/kernel"] == axes["shared_gate/kernel"] == (None, None)
    assert axes["router/bias"] == (None,)
    assert mixture(ffn="linear").parameters(D)["experts_map"].axes == ("expert", "fsdp", None)
    assert mixture(ffn="geglu_scaled").parameters(D)["experts_hidden_scale"].axes == ("expert", None, "tensor")
    multiplied = {path for path, parameter in parameters.items() if parameter.multiplies}
    assert multiplied == {path for path in parameters if not path.endswith("bias")}


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "soft_moe"])
def test_only_a_router_that_needs_a_group_size_has_parameters_that_depend_on_it(name):
    config, router = NAMED[name], NAMED[name].router
    assert not router.needs_group_size
    assert router.parameters(D, 3, config.setting()) == router.parameters(D, 300, config.setting())


@pytest.mark.parametrize("name", ROUTERS)
def test_a_configuration_is_its_dictionary_and_can_be_hashed(name):
    config = NAMED[name]
    assert build(MoEConfig, to_dict(config)) == config
    assert hash(build(MoEConfig, to_dict(config))) == hash(config)


def test_a_router_is_a_name_a_mapping_or_a_router():
    assert mixture(router="deepseek").router == DeepSeek()
    named = MoEConfig(4, router="switch", losses={"z_loss": 0.1})
    assert named == MoEConfig(4, router=Switch(), losses={"z_loss": 0.1}) == MoEConfig(4, losses={"z_loss": 0.1})
    assert hash(named) == hash(dataclasses.replace(named))
    options = {"kind": "deepseek", "num_groups": 2}
    assert MoEConfig(4, router=options, k=2).router == DeepSeek(num_groups=2)
    assert MoEConfig(4, router=options, k=2).router_name == "deepseek"
    assert MoEConfig(4, router={"rounds": 2}).router == Switch(rounds=2)


# Fields of a mixture of four experts, and the message, the same alone and in a model but for the path before it.
REFUSED = [
    ({"router": "swich"}, r"router is 'swich'; accepted: .*; did you mean 'switch'\?"),
    ({"router": {"kind": "top_k", "scor": "softmax"}, "k": 2}, r"router\.scor is not a field; .*mean 'score'\?"),
    (
        {"router": {"kind": "top_k", "score": "relu"}, "k": 2},
        r"router\.score is 'relu'; accepted: 'softmax', 'sig",
    ),
    ({"router": "gshard"}, r"k is 1; accepted: 2, with router 'gshard'"),
    ({"k": 2}, r"k is 2; accepted: 1, with router 'switch'"),
    ({"k": 5}, r"k is 5; accepted: 1 to num_experts \(4\)"),
    ({"router": "top_k"}, r"router\.renormalize is True; accepted: False, with k=1, or every weight is 1 and"),
    ({"router": "deepseek"}, r"router\.renormalize is True; accepted: False, with k=1, or every weight is 1 and"),
    ({"router": "base"}, r"capacity_factor is 1\.25; accepted: None, with router 'base'"),
    ({"router": {"kind": "deepseek", "num_groups": 3}, "k": 2}, r"router\.num_groups is 3; accepted: a divisor of"),
    ({"router": "soft_moe", "capacity_factor": None}, r"group_size is None; accepted: an integer, with router 'soft_"),
    ({"losses": {"load_loss": 1.0}}, r"losses is 'load_loss'; accepted: losses of router 'switch': balance_loss, z_"),
    ({"ffn": "rely"}, r"ffn is 'rely'; accepted: .*; did you mean 'relu'\?"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED, ids=[says.split(";")[0] for _, says in REFUSED])
def test_a_layer_alone_and_a_model_refuse_the_same(fields, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        MoEConfig(num_experts=4, **fields)
    with pytest.raises(ConfigError, match=rf"^model\.moe\.{says}"):
        build(MoEConfig, {"num_experts": 4} | fields, "model.moe")


@pytest.mark.parametrize("name", ["top_k", "deepseek"])
def test_one_choice_that_is_not_renormalised_is_accepted(name):
    assert mixture(router=name, k=2).k == 2
    options = {"kind": name, "renormalize": False}
    assert not MoEConfig(num_experts=4, router=options).router.renormalize


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ffn": "relu"}, r"^expert_dim is None; accepted: an integer of at least 1; only a model"),
        ({"expert_dim": 8}, r"^ffn is None; accepted: geglu, .*; only a model has one to take"),
    ],
)
def test_a_layer_alone_needs_its_experts_shape(fields, says):
    config = MoEConfig(num_experts=4, **fields)
    with pytest.raises(ConfigError, match=says):
        MoE(config).init(jax.random.key(0), jnp.ones((1, 4, 6)))
    with pytest.raises(ConfigError, match=says):
        config.parameters(D)


@pytest.mark.parametrize("shape", [(4,), (4, 6), (1, 2, 4, 6)])
def test_tokens_are_a_batch_of_sequences(shape):
    with pytest.raises(ConfigError, match=r"^shape of x is \(.*\); accepted: \[batch, sequence, model width\]"):
        MoE(mixture()).init(jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"shared_dim": 4}, r"^shared_dim is 4; accepted: None, with ffn='linear'"),
        ({"combine": "mix"}, r"^combine is 'mix'; accepted: output, for experts in the attention"),
    ],
)
def test_linear_experts_take_the_place_of_a_projection_and_of_nothing_else(fields, says):
    with pytest.raises(ConfigError, match=says):
        mixture(ffn="linear", **fields)
    shared = mixture(shared_dim=4, shared_gate=True, places=("attention",))
    assert shared.projection(9) == mixture(ffn="linear", expert_dim=9, places=("attention",))


def test_linear_experts_are_matrices():
    """With one expert per token and no capacity the result is the weighted product with the expert's matrix."""
    config = mixture(ffn="linear", expert_dim=3, capacity_factor=None)
    x = jax.random.normal(jax.random.key(0), (B, S, D))
    params = MoE(config).init(jax.random.key(1), x)["params"]
    y = np.asarray(MoE(config).apply({"params": params}, x), np.float64)
    logits = np.asarray(x, np.float64) @ np.asarray(params["router"]["kernel"], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    maps = np.asarray(params["experts_map"], np.float64)
    for place in np.ndindex(B, S):
        expert = logits[place].argmax()
        expected = probabilities[place][expert] * np.asarray(x[place], np.float64) @ maps[expert]
        np.testing.assert_allclose(y[place], expected, rtol=1e-4, atol=1e-5)


def test_evaluation_has_its_own_capacity():
    config = mixture(capacity_factor=1.0, eval_capacity_factor=2.0)
    assert config.setting().capacity_factor == config.setting(training=True).capacity_factor == 1.0
    assert config.setting(training=False).capacity_factor == 2.0
    assert mixture().setting(training=False).capacity_factor == 1.0
    x = jnp.ones((1, S, D))
    params = MoE(config).init(jax.random.key(0), x)["params"]

    def dropped(training):
        _, sown = MoE(config, Mode(training)).apply({"params": params}, x, mutable=["routing"])
        return float(sown["routing"]["router"]["fraction_dropped"].value)

    # All tokens are alike and go to one expert, of 2 seats in training and 4 in evaluation.
    assert (dropped(True), dropped(False)) == (0.75, 0.5)
