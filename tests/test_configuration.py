"""What a configuration refuses: one line that names the field, its value and what is accepted."""

import dataclasses
import math

import pytest

from moe_jax.configuration import ConfigError, build, differences, lists_to_tuples, to_dict
from moe_jax.models.config import ModelConfig
from moe_jax.training.config import TrainConfig
from tests.configurations import PAIRED, changed

SPANS = PAIRED["data.task"]
TUNED = {"kind": "text_to_text", "target_length": 20, "sentinels": 4}

# What is changed; how the message starts; what else it says.
REFUSED = [
    # Names, types, and what is missing.
    ({"model.num_layer": 3}, "model.num_layer is not a field; accepted: vocab_size, num_layers", "mean 'num_layers'?"),
    ({"sede": 3}, "sede is not a field; accepted: name, model", "did you mean 'seed'?"),
    ({"model.moe.experts": 3}, "model.moe.experts is not a field; accepted: num_experts", "mean 'num_experts'?"),
    ({"name": ...}, "name is missing; accepted: a value of type str", ""),
    ({"model.vocab_size": ...}, "model.vocab_size is missing; accepted: a value of type int", ""),
    ({"model.moe.num_experts": ...}, "model.moe.num_experts is missing; accepted: a value of type int", ""),
    ({"model": ...}, "model is missing; accepted: a value of type ModelConfig", ""),
    ({"model": 3}, "model is 3; accepted: a mapping of ModelConfig's fields", ""),
    ({"steps": "many"}, "steps is 'many'; accepted: int", ""),
    ({"steps": 10.0}, "steps is 10.0; accepted: int", ""),
    ({"steps": True}, "steps is True; accepted: int", ""),
    ({"steps": None}, "steps is None; accepted: int", ""),
    ({"model.tie_embeddings": 1}, "model.tie_embeddings is 1; accepted: bool", ""),
    ({"model.moe.capacity_factor": "1"}, "model.moe.capacity_factor is '1'; accepted: float, or None", ""),
    ({"model.moe.capacity_factor": "null"}, "model.moe.capacity_factor is 'null'; accepted: float, or", "mean None?"),
    ({"name": ["long"] * 10_000}, "name is ['long', 'long', ", "... (80,000 characters); accepted: str"),
    ({"model.moe_layers": 1}, "model.moe_layers is 1; accepted: tuple[int, ...]", ""),
    ({"model.moe_layers": (1, 2.5)}, "model.moe_layers[1] is 2.5; accepted: int", ""),
    (
        {"model.attention.positions": "rop"},
        "model.attention.positions is 'rop'; accepted: none, rope, t5",
        "mean 'rope'?",
    ),
    ({"model.dtype": "float16"}, "model.dtype is 'float16'; accepted: 'float32', 'bfloat16'", ""),
    ({"optimizer.name": "sgd"}, "optimizer.name is 'sgd'; accepted: 'adamw', 'adafactor'", ""),
    ({"model.ffn": "swigly"}, "model.ffn is 'swigly'; accepted: geglu, geglu_scaled, ", "did you mean 'swiglu'?"),
    # The mixture.
    ({"model.moe.num_experts": 0}, "model.moe.num_experts is 0; accepted: an integer of at least 1", ""),
    ({"model.moe.router": "swich"}, "model.moe.router is 'swich'; accepted: base, deepseek", "mean 'switch'?"),
    (
        {"model.moe.execution": "pad"},
        "model.moe.execution is 'pad'; accepted: auto, dropless, ",
        "mean 'padded'?",
    ),
    (
        {"model.moe.kernel": "block"},
        "model.moe.kernel is 'block'; accepted: 'auto', 'native', 'megablox', 'tokamax', 'blocks'",
        "",
    ),
    ({"model.remat_saves": ("ffn_inner",)}, "model.remat_saves is ('ffn_inner',); accepted: (), without remat", ""),
    ({"model.remat": True, "model.remat_saves": ("ffn",)}, "model.remat_saves is 'ffn'; accepted: attention_heads", ""),
    ({"model.loss_chunk": 0}, "model.loss_chunk is 0; accepted: an integer of at least 1, or None", ""),
    ({"model.moe.k": 5}, "model.moe.k is 5; accepted: 1 to num_experts (4)", ""),
    ({"model.moe.k": 0}, "model.moe.k is 0; accepted: 1 to num_experts (4)", ""),
    ({"model.moe.k": 2}, "model.moe.k is 2; accepted: 1, with router 'switch'", ""),
    ({"model.moe.router": "gshard"}, "model.moe.k is 1; accepted: 2, with router 'gshard'", ""),
    (
        {"model.moe.capacity_factor": 0},
        "model.moe.capacity_factor is 0.0; accepted: a positive number, finite, or None",
        "",
    ),
    ({"model.moe.capacity_factor": -1.0}, "model.moe.capacity_factor is -1.0; accepted: a positive number", ""),
    ({"model.moe.capacity_factor": math.inf}, "model.moe.capacity_factor is inf; accepted: a positive number", ""),
    ({"model.moe.capacity_factor": math.nan}, "model.moe.capacity_factor is nan; accepted: a positive number", ""),
    ({"model.moe.eval_capacity_factor": 0.0}, "model.moe.eval_capacity_factor is 0.0; accepted: a positive", ""),
    ({"model.moe.group_size": 0}, "model.moe.group_size is 0; accepted: an integer of at least 1, or None", ""),
    ({"model.moe.group_size": 48}, "model.moe.group_size is 48; accepted: a divisor of 128, the tokens of a step", ""),
    ({"model.moe.expert_dim": 0}, "model.moe.expert_dim is 0; accepted: an integer of at least 1, or None", ""),
    ({"model.moe.losses": {"balance_loss": -0.1}}, "model.moe.losses.balance_loss is -0.1; accepted: a number of", ""),
    ({"model.moe.losses": {"balance_loss": "a"}}, "model.moe.losses.balance_loss is 'a'; accepted: float", ""),
    ({"model.moe.losses": 0.1}, "model.moe.losses is 0.1; accepted: collections.abc.Mapping[str, float]", ""),
    (
        {"model.moe.losses": {"load_loss": 0.1}},
        "model.moe.losses is 'load_loss'; accepted: losses of router 'switch': balance_loss, z_loss",
        "",
    ),
    (
        {"model.moe.router": "uniform_random", "model.moe.losses": {"z_loss": 0.1}},
        "model.moe.losses is 'z_loss'; accepted: losses of router 'uniform_random': none",
        "",
    ),
    ({"model.moe.router": "base"}, "model.moe.capacity_factor is 1.25; accepted: None, with router 'base'", ""),
    ({"model.moe.loss_level": "layer"}, "model.moe.loss_level is 'layer'; accepted: 'group', 'sequence', 'batch'", ""),
    ({"model.moe.capacity_rule": "tutel"}, "model.moe.capacity_rule is 'tutel'; accepted: 'ceil', 'mesh_tens", ""),
    ({"model.moe.combine": "both"}, "model.moe.combine is 'both'; accepted: 'output', 'input', 'mix'", ""),
    ({"model.moe.shared_dim": 0}, "model.moe.shared_dim is 0; accepted: an integer of at least 1, or None", ""),
    ({"model.moe.shared_gate": True}, "model.moe.shared_gate is True; accepted: False, without shared_dim", ""),
    (
        {"model.moe.router": {"priority": "probability"}},
        "model.moe.router is 'switch', with which a token's experts depend on later tokens",
        "",
    ),
    (
        {"model.moe.router": {"second_policy": "all"}},
        "model.moe.router.second_policy is not a field; accepted: exploration",
        "",
    ),
    (
        {"model.moe.router": {"kind": "gshard", "second_polcy": "all"}, "model.moe.k": 2},
        "model.moe.router.second_polcy is not a field; accepted: second_policy, second_threshold",
        "did you mean 'second_policy'?",
    ),
    (
        {"model.moe.router": {"kind": "gshard", "second_policy": "some"}, "model.moe.k": 2},
        "model.moe.router.second_policy is 'some'; accepted: 'all', 'none', 'threshold', 'random'",
        "",
    ),
    (
        {"model.moe.router": "expert_choice"},
        "model.moe.router is 'expert_choice', with which a token's experts depend on later tokens",
        "allow_noncausal_router=True",
    ),
    # The model.
    ({"model.moe": None}, "model.moe is None; accepted: a mixture's fields, because moe_layers is not empty", ""),
    ({"model.moe_layers": (1, 4)}, "model.moe_layers is (1, 4); accepted: increasing layer indices below", "(4)"),
    ({"model.moe_layers": (-1,)}, "model.moe_layers is (-1,); accepted: increasing layer indices below", "(4)"),
    ({"model.moe_layers": (3, 1)}, "model.moe_layers is (3, 1); accepted: increasing layer indices below", "(4)"),
    ({"model.moe_layers": (1, 1)}, "model.moe_layers is (1, 1); accepted: increasing layer indices below", "(4)"),
    (
        {"model.attention.heads": 3},
        "model.attention.heads is 3; accepted: a divisor of model_dim (16), or set head_dim",
        "",
    ),
    ({"model.attention.heads": 0}, "model.attention.heads is 0; accepted: an integer of at least 1", ""),
    ({"model.attention.kv_heads": 3}, "model.attention.kv_heads is 3; accepted: a divisor of heads (4)", ""),
    ({"model.attention.kv_heads": 0}, "model.attention.kv_heads is 0; accepted: an integer of at least 1, or None", ""),
    (
        {"model.attention.kv_heads": -2},
        "model.attention.kv_heads is -2; accepted: an integer of at least 1, or None",
        "",
    ),
    ({"model.attention.head_dim": 5}, "model.attention.head_dim is 5; accepted: an even number, with rope", ""),
    ({"model.attention.head_dim": 0}, "model.attention.head_dim is 0; accepted: an integer of at least 1, or None", ""),
    (
        {"model.attention.head_dim": -2},
        "model.attention.head_dim is -2; accepted: an integer of at least 1, or None",
        "",
    ),
    (
        {"model.attention.positions": {"kind": "rope", "theta": 0}},
        "model.attention.positions.theta is 0.0; accepted: a positive number",
        "",
    ),
    (
        {"model.attention.positions": {"kind": "t5", "init_std": 0}},
        "model.attention.positions.init_std is 0.0; accepted: a positive number",
        "",
    ),
    (
        {"model.attention.positions": {"kind": "rope", "init_std": 0.1}},
        "model.attention.positions.init_std is not a field; accepted: theta",
        "",
    ),
    ({"model.init_scale": 0.0}, "model.init_scale is 0.0; accepted: a positive number", ""),
    (
        {"model.variants": [{"layers": (0,), "moe": {"num_experts": 2}}]},
        "model.variants[0].layers is (0,); accepted: layers in moe_layers (1, 3), because the variant has a mixture",
        "",
    ),
    (
        {"model.variants": [{"layers": (0,)}]},
        "model.variants[0].layers is (0,); accepted: layers with an attention",
        "",
    ),
    ({"model.variants": [{"layers": (9,), "ffn_dim": 8}]}, "model.variants[0].layers is (9,); accepted: increas", ""),
    ({"model.norm": {"kind": "rms", "eps": 0}}, "model.norm.eps is 0.0; accepted: a positive number", ""),
    (
        {"model.attention": {"kind": "sliding_windw", "heads": 4}},
        "model.attention is 'sliding_windw'; accepted: ",
        "did you mean 'sliding_window'?",
    ),
    ({"model.attention": {"kind": "sliding_window", "heads": 4, "window": 0}}, "model.attention.window is 0; acc", ""),
    ({"model.attention.positions": {"theta": 1.0}}, "model.attention.positions.kind is None; accepted: none, rope", ""),
    # The run.
    ({"model.vocab_size": 300}, "model.vocab_size is 300; accepted: 257, the vocabulary of data.tokenizer='bytes'", ""),
    ({"optimizer.warmup_steps": 100}, "optimizer.warmup_steps is 100; accepted: fewer than steps (100)", ""),
    ({"optimizer.warmup_steps": 0}, "optimizer.warmup_steps is 0; accepted: an integer of at least 1", ""),
    ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate is 0.0; accepted: a positive number", ""),
    ({"optimizer.beta2": 1.0}, "optimizer.beta2 is 1.0; accepted: at least 0 and below 1, or None", ""),
    (
        {"optimizer.name": "adafactor", "optimizer.beta1": 0.9},
        "optimizer.beta1 is 0.9; accepted: None with adafactor",
        "",
    ),
    ({"optimizer.clip_norm": 0.0}, "optimizer.clip_norm is 0.0; accepted: positive, or None", ""),
    ({"steps": 0}, "steps is 0; accepted: an integer of at least 1", ""),
    ({"seed": -1}, "seed is -1; accepted: an integer of at least 0", ""),
    ({"data.tokenizer": "words"}, "data.tokenizer is 'words'; accepted: bytes, bpe:SIZE", ""),
    ({"data.tokenizer": "bpe:100"}, "data.tokenizer is 'bpe:100'; accepted: bpe:SIZE with a SIZE of at least 257", ""),
    ({"data.corpus": "books"}, "data.corpus is 'books'; accepted: python_source, ", "tfds:NAME"),
    ({"data.task": {"kind": "masked", "mask_rate": 1.0}}, "data.task.mask_rate is 1.0; accepted: between 0 and 1", ""),
    ({"data.task": "mask"}, "data.task is 'mask'; accepted: causal, masked", "did you mean 'masked'?"),
    ({"data.task": {"kind": "causal", "sentinels": 8}}, "data.task.sentinels is not a field; accepted: none", ""),
    ({"data.task": "span_corruption"}, "data.task.target_length is missing; accepted: a value of type int", ""),
    ({"data.task": TUNED | {"train_examples": 0}}, "data.task.train_examples is 0; accepted: an integer of ", "None"),
    ({"data.task": TUNED | {"sentinels": -1}}, "data.task.sentinels is -1; accepted: an integer of at least 0", ""),
    (
        {"data.task": TUNED | {"target_length": 0}, "data.corpus": "python_functions"},
        "data.task.target_length is 0; accepted: an integer of at least 1",
        "",
    ),
    ({"data.tokenizer_corpus": "books"}, "data.tokenizer_corpus is 'books'; accepted: python_source, ", "or None"),
    ({"data.task": SPANS | {"mean_span": 0.5}}, "data.task.mean_span is 0.5; accepted: a number of at least 1", ""),
    ({"data.task": SPANS | {"target_length": 3}}, "data.task.target_length is 3; accepted: at least 8", ""),
    ({"data.task": SPANS | {"sentinels": 1}}, "data.task.sentinels is 1; accepted: at least 2, one for each ", ""),
    (PAIRED | {"data.sequence_length": 3}, "data.sequence_length is 3; accepted: an integer of at least 4", ""),
    (PAIRED | {"model.architecture": "decoder"}, "model.architecture is 'decoder'; accepted: 'encoder_decoder'", ""),
    (
        {"model.architecture": "encoder_decoder"},
        "model.architecture is 'encoder_decoder'; accepted: 'decoder' with data.task='causal'",
        "",
    ),
    (
        PAIRED | {"model.loss_chunk": 7},
        "model.loss_chunk is 7; accepted: a divisor of data.task.target_length (20)",
        "",
    ),
    (
        PAIRED | {"model.moe.group_size": 64},
        "model.moe.group_size is 64; accepted: a divisor of 80, the tokens of a step",
        "",
    ),
    (
        PAIRED | {"data.task": TUNED},
        "data.corpus is 'python_source'; accepted: python_functions, json_lines:GLOB",
        "",
    ),
    (
        PAIRED | {"data.task": TUNED, "data.corpus": "python_functions", "data.tokenizer": "bpe:512"},
        "data.tokenizer_corpus is None; accepted: python_source, ",
        "",
    ),
    (
        {"model.dropout": 0.1, "mesh": {"data": 2}},
        "model.moe.dropout is 0.1; accepted: 0 on more than one device",
        "",
    ),
    ({"model.causal": False}, "model.causal is False; accepted: True with data.task='causal'", ""),
    (
        {"data.task": "masked", "model.vocab_size": 258},
        "model.causal is True; accepted: False with data.task='masked'",
        "",
    ),
    ({"data.task": "masked", "model.causal": False}, "model.vocab_size is 257; accepted: 258, ", ""),
    ({"model.moe.ffn": "rely"}, "model.moe.ffn is 'rely'; accepted: ", "did you mean 'relu'?"),
    (
        {"model.moe.capacity_factor": None, "model.moe.capacity_rule": "mesh_tensorflow"},
        "model.moe.capacity_rule is 'mesh_tensorflow'; accepted: ceil, with capacity_factor=None",
        "",
    ),
    (
        {"model.variants": [{"layers": (3,), "moe": {"num_experts": 4, "group_size": 48}}]},
        "model.variants[0].moe.group_size is 48; accepted: a divisor of 128, the tokens of a step",
        "",
    ),
    (
        {"model.variants": [{"layers": (3,), "moe": {"num_experts": 4, "router": "expert_choice"}}]},
        "model.variants[0].moe.router is 'expert_choice', with which a token's experts depend on later",
        "",
    ),
    (
        {"model.variants": [{"layers": (3,), "moe": {"num_experts": 3}}], "mesh": {"expert": 2}},
        "mesh.expert is 2; accepted: a divisor of model.variants[0].moe.num_experts (3)",
        "",
    ),
    (
        {"model.moe.router": {"kind": "vmoe", "priority": "batch"}, "model.moe.capacity_factor": None}
        | {"model.moe.eval_capacity_factor": 1.0},
        "model.moe.router is 'vmoe', with which",
        "",
    ),
    (
        {"model.moe.router": "remoe", "model.moe.capacity_factor": None, "model.moe.eval_capacity_factor": 1.0},
        "model.moe.eval_capacity_factor is 1.0; accepted: None, with router 'remoe'",
        "",
    ),
    ({"data.validation_fraction": 1.0}, "data.validation_fraction is 1.0; accepted: between 0 and 1", ""),
]


@pytest.mark.parametrize(("changes", "start", "rest"), REFUSED, ids=[start.split(";")[0] for _, start, _ in REFUSED])
def test_refused(changes, start, rest):
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict(changed(changes))
    message = str(error.value)
    assert message.startswith(start)
    assert rest in message
    assert "accepted: " in message
    assert "\n" not in message


ACCEPTED = [
    {},
    {"model.moe_layers": ()},
    {"model.moe_layers": [], "model.moe": None},
    {"model.moe.capacity_factor": None},
    {"model.moe.capacity_factor": 2},
    {"model.moe.group_size": 64},
    {"model.attention.heads": 3, "model.attention.head_dim": 4},
    {"model.attention.positions": "t5", "model.attention.head_dim": 5},
    {"model.attention.kv_heads": 2},
    {"model.moe.router": {"kind": "gshard", "second_threshold": 0.5}, "model.moe.k": 2},
    {"model.moe.router": "expert_choice", "model.moe.allow_noncausal_router": True},
    {"model.moe.router": "expert_choice", "model.moe_layers": ()},
    {"model.moe.router": {"kind": "expert_choice", "among": "seen"}},
    {"model.moe.router": {"kind": "hash", "by": "balanced", "counts": [3, 1]}},
    {"model.moe.losses": {"z_loss": 0.001}, "model.moe.loss_level": "batch", "model.moe.combine": "mix"},
    {"model.moe.shared_dim": 8, "model.moe.shared_gate": True, "model.moe.capacity_rule": "mesh_tensorflow"},
    {"model.depth": {"layers": [0, 2], "capacity": 0.5}},
    {"model.moe.ffn": "gpt_oss"},
    {"data.task": "masked", "model.causal": False, "model.vocab_size": 258, "model.moe.router": "expert_choice"},
    {"model.moe.router": "soft_moe", "model.moe.capacity_factor": None, "model.moe.group_size": 32}
    | {"model.moe.allow_noncausal_router": True},
    {"data.tokenizer": "bpe:512", "model.vocab_size": 512},
    PAIRED,
    PAIRED | {"data.task": TUNED | {"train_examples": 8}, "data.corpus": "python_functions"},
    {"model.dropout": 0.1, "model.moe.dropout": 0.0, "mesh": {"data": 2}},
    {"model.moe.places": ["attention", "feed_forward"], "model.moe.router_dtype": "bfloat16"},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=lambda changes: ",".join(changes) or "good")
def test_accepted_and_back(changes):
    """The inverse through JSON's types gives the same configuration."""
    config = TrainConfig.from_dict(changed(changes))
    assert TrainConfig.from_dict(to_dict(config)) == config


def test_values_are_converted_to_the_types_of_fields():
    config = TrainConfig.from_dict(changed({"model.moe_layers": [1, 3], "model.moe.capacity_factor": 2}))
    assert config.model.moe_layers == (1, 3)
    assert isinstance(config.model.moe.capacity_factor, float)
    assert build(ModelConfig, to_dict(config.model)) == config.model


def test_lists_that_are_written_by_hand_can_be_hashed():
    @dataclasses.dataclass(frozen=True)
    class Config:
        layers: tuple[int, ...]
        name: str = ""

        def __post_init__(self):
            lists_to_tuples(self)

    assert Config([1, 2], "a") == Config((1, 2), "a")
    assert hash(Config([1, 2])) == hash(Config((1, 2)))


def test_a_configuration_is_known_by_what_differs_from_the_defaults():
    """Also within a tagged union, whose name is always there; a later field with a default changes nothing."""
    config = TrainConfig.from_dict(
        changed({"model.moe.k": 2, "model.moe.router": {"kind": "deepseek", "num_groups": 2}})
    )
    values = differences(config)
    assert values["model"]["moe"] == {"num_experts": 4, "router": {"kind": "deepseek", "num_groups": 2}, "k": 2}
    assert values["model"]["attention"] == {"kind": "grouped_query", "heads": 4}
    assert "scan_layers" not in values["model"]
    assert TrainConfig.from_dict(values) == config


def test_an_error_is_one_line_whatever_it_is_about():
    error = ConfigError("'a\nb' is\u2028not\x85\x1b[31m \ud800 é; accepted: '\\n'")
    assert str(error) == r"'a\nb' is\u2028not\x85\x1b[31m \ud800 é; accepted: '\n'"
    assert str(error.within("x\ty")) == rf"x\ty.{error}"
