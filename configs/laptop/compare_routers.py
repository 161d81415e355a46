"""Configurations of all routers in one model, with equal data, seeds and active FLOPs per token, for two CPU cores.

Command:   python -m moe_jax train configs/laptop/compare_routers.py:switch --workdir runs/switch
           for one model (or another of MODELS); python -m experiments.compare_routers for all
Hardware:  two cores of a laptop or a small server, 4 GB of memory.
Time:      25 seconds for one model on average; 42 minutes for 29 of the 30 with three seeds, 3.7 GB.
Expected:  experiments/results/compare_routers. The dense decoder ends with a validation loss of 3.94 nats per token and
           the dense encoder with 5.17. In the decoder hash routing is 0.06 below dense, most others within 0.02.
           Without balancing the busiest expert of top_k and deepseek has 8.0 times the mean load; with it 1.8 and 1.7.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moe_jax.configuration import require_name
from moe_jax.layers.moe import MoEConfig
from moe_jax.routing import KINDS, ROUTERS

EXPERTS_PER_CHOICE = 8
FFN_DIM = 512
GROUP = 8 * 128

# Differences from a mixture of 8 * k experts of width ffn_dim / k with k = 2, a capacity factor of 1.25 and the router
# of the variant's name. Routers without a line are variants, too.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense_mixture": {"k": 8, "num_experts": 8, "capacity_factor": None},
    "uniform_random": {},
    "hash": {"k": 1},
    "switch": {"k": 1},
    "switch-unbalanced": {"router": "switch", "k": 1, "losses": {"balance_loss": 0.0}},
    "noisy_top_k": {},
    "hierarchical": {"router": {"kind": "hierarchical", "groups": 4}},
    "gshard": {},
    "st_moe": {},
    "vmoe": {},
    "vmoe-batch": {"router": {"kind": "vmoe", "priority": "batch"}},
    "top_k": {},
    "top_k-unbalanced": {"router": "top_k", "losses": {"balance_loss": 0.0}},
    # At the paper's rate a bias moves by at most 0.3 in 300 steps, less than the differences between scores.
    "deepseek": {"router": {"kind": "deepseek", "bias_rate": 0.01}},
    "deepseek-0.001": {"router": "deepseek"},
    "deepseek-unbalanced": {
        "router": {"kind": "deepseek", "bias_rate": 0.0},
        "losses": {"balance_loss": 0.0},
    },
    "sparse_mixer": {},
    "quantile": {},
    "remoe": {},
    "expert_choice": {"capacity_factor": 1.0},
    "expert_choice-capped": {"router": {"kind": "expert_choice", "most": 3}, "capacity_factor": 1.0},
    "expert_choice-seen": {
        "router": {"kind": "expert_choice", "among": "seen"},
        "capacity_factor": 1.0,
        "group_size": None,
    },
    "base": {"k": 1, "capacity_factor": None, "combine": "mix"},
    "sinkhorn": {},
    # A group is a sequence, as in the paper an image, with as many slots as tokens.
    "soft_moe": {"k": 1, "capacity_factor": None, "group_size": 128},
}

VARIANTS |= {name: {} for name in ROUTERS if name not in VARIANTS}


def _mixture(variant: str) -> dict[str, Any]:
    """Returns a variant's mixture; its k experts cost as much as the dense layer."""
    own = VARIANTS[variant]
    router = KINDS.make(own.get("router", variant), "router")
    k = own.get("k") or (2 if router.choices_allowed is None else router.choices_allowed[0])
    fields = {
        "router": variant,
        "k": k,
        "num_experts": EXPERTS_PER_CHOICE * k,
        "expert_dim": FFN_DIM // k,
        "capacity_factor": 1.25 if router.drops else None,
        "group_size": GROUP,
    } | own
    if fields["capacity_factor"] == 1.25:
        fields["eval_capacity_factor"] = 2.0
    return fields


NONCAUSAL = tuple(variant for variant in VARIANTS if variant != "dense" and not MoEConfig(**_mixture(variant)).causal)
"""Variants that see later tokens while they train, or always."""


class Kind(NamedTuple):
    """A model's task, and its variant, a key of VARIANTS."""

    task: str
    variant: str


MODELS = {variant: Kind("causal", variant) for variant in VARIANTS if variant not in NONCAUSAL} | {
    f"masked/{variant}": Kind("masked", variant) for variant in ("dense", "switch", "top_k", "vmoe", *NONCAUSAL)
}
"""Causal decoders, and encoders that say what was hidden: all variants that are not causal, and some of the others."""


def get_config(model: str = "switch") -> ConfigDict:
    """Returns one of MODELS: a variant in a causal decoder, or in an encoder that predicts masked tokens."""
    require_name(model, MODELS, "model")
    task, variant = MODELS[model]
    config = ConfigDict()
    config.name = variant
    config.steps = 300
    config.eval_every = 60
    config.eval_batches = 8
    config.checkpoint_every = 300

    config.data = ConfigDict()
    config.data.corpus = "python_source"
    config.data.tokenizer = "bpe:512"
    config.data.sequence_length = 128
    config.data.batch_size = 8
    config.data.task = task

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 30

    config.model = ConfigDict()
    config.model.vocab_size = 512 + (task == "masked")
    config.model.num_layers = 2
    config.model.model_dim = 128
    config.model.ffn_dim = FFN_DIM
    config.model.ffn = "relu"
    config.model.attention = ConfigDict({"heads": 2, "positions": "t5"})
    config.model.causal = task == "causal"
    if variant != "dense":
        config.model.moe_layers = (1,)
        config.model.moe = ConfigDict(_mixture(variant))
    return config


def get_quick_config(model: str = "switch") -> ConfigDict:
    """Returns the model of `get_config` with few steps, for a trial run; its losses mean nothing."""
    config = get_config(model)
    config.steps, config.eval_every, config.checkpoint_every = 20, 10, 20
    config.eval_batches = 2
    config.optimizer.warmup_steps = 5
    return config
