"""Every router in one model: same data, same seeds, same active FLOPs per token, for two CPU cores.

Command:   python -m moe_jax train configs/laptop/compare_routers.py:switch --workdir runs/switch
           (or another of MODELS); all of them:
           python -m experiments.compare_routers
Hardware:  two cores of a laptop or a small server, 4 GB of memory.
Time:      25 seconds for one model on average; 42 minutes for 29 of the 30 with three seeds, 3.7 GB.
Expected:  experiments/results/compare_routers. Validation loss 3.94 nats per token dense in the decoder, 5.17 in the
           encoder; in the decoder hash routing is 0.06 below it, most others within 0.02. Without balancing the busiest
           expert of top_k and of deepseek has 8.0 times its share, with it 1.8 and 1.7.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moe_jax.configuration import require_name

EXPERTS_PER_CHOICE = 8

# What differs from a mixture of 8 * k experts of width ffn_dim / k, top-k by `router`, with a capacity factor of 1.25.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense_mixture": {"k": 8, "num_experts": 8, "capacity_factor": None},
    "uniform_random": {},
    "hash": {"k": 1},
    "switch": {"k": 1},
    "switch-unbalanced": {"router": "switch", "k": 1, "losses": {"balance_loss": 0.0}},
    "noisy_top_k": {},
    "hierarchical": {"router_options": {"groups": 4}},
    "gshard": {},
    "st_moe": {},
    "vmoe": {},
    "vmoe-batch": {"router": "vmoe", "router_options": {"priority": "batch"}},
    "top_k": {},
    "top_k-unbalanced": {"router": "top_k", "losses": {"balance_loss": 0.0}},
    # At the rate of the paper, which has many thousand steps, a bias moves by 0.3 in 300, less than scores may differ.
    "deepseek": {"router_options": {"bias_rate": 0.01}},
    "deepseek-0.001": {"router": "deepseek"},
    "deepseek-unbalanced": {
        "router": "deepseek",
        "router_options": {"bias_rate": 0.0},
        "losses": {"balance_loss": 0.0},
    },
    "sparse_mixer": {},
    "quantile": {},
    "remoe": {"capacity_factor": None},
    "expert_choice": {"capacity_factor": 1.0},
    "expert_choice-capped": {"router": "expert_choice", "capacity_factor": 1.0, "router_options": {"most": 3}},
    "expert_choice-seen": {
        "router": "expert_choice",
        "capacity_factor": 1.0,
        "router_options": {"among": "seen"},
        "group_size": None,
    },
    "base": {"k": 1, "capacity_factor": None, "combine": "mix"},
    "sinkhorn": {},
    # In groups of a sequence, as the paper's of an image, with as many slots as tokens.
    "soft_moe": {"k": 1, "capacity_factor": None, "group_size": 128},
}

# Variants that see later tokens while they train, or always.
NONCAUSAL = ("expert_choice", "expert_choice-capped", "vmoe-batch", "base", "sinkhorn", "soft_moe")


class Kind(NamedTuple):
    """A model's task, and its variant, a key of VARIANTS."""

    task: str
    variant: str


MODELS = {variant: Kind("causal", variant) for variant in VARIANTS if variant not in NONCAUSAL} | {
    f"masked/{variant}": Kind("masked", variant) for variant in ("dense", "switch", "top_k", "vmoe", *NONCAUSAL)
}
"""Causal decoders, and encoders that say what was hidden: all variants that are not causal, and some of the others."""


def get_config(model: str = "switch") -> ConfigDict:
    """Returns one of MODELS."""
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
    config.model.num_heads = 2
    config.model.ffn_dim = 512
    config.model.ffn = "relu"
    config.model.positions = "t5"
    config.model.causal = task == "causal"
    if variant != "dense":
        config.model.moe_layers = (1,)
        config.model.moe = ConfigDict(_mixture(variant, config.model.ffn_dim, 8 * 128))
    return config


def get_quick_config(model: str = "switch") -> ConfigDict:
    """Returns a model for a few steps, to see how things work; its losses mean nothing."""
    config = get_config(model)
    config.steps, config.eval_every, config.checkpoint_every = 20, 10, 20
    config.eval_batches = 2
    config.optimizer.warmup_steps = 5
    return config


def _mixture(variant: str, ffn_dim: int, tokens: int) -> dict[str, Any]:
    """Returns a variant's mixture in groups of `tokens`: k experts cost as much as a dense layer of width `ffn_dim`."""
    own = VARIANTS[variant]
    k = own.get("k", 2)
    fields = {
        "router": variant,
        "k": k,
        "num_experts": EXPERTS_PER_CHOICE * k,
        "expert_dim": ffn_dim // k,
        "capacity_factor": 1.25,
        "group_size": tokens,
    } | own
    if fields["capacity_factor"] == 1.25:
        fields["eval_capacity_factor"] = 2.0
    return fields
