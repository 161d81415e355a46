"""Dense against Switch at equal FLOPs per token, for two CPU cores.

Command:   python -m moe_jax train configs/laptop/switch_vs_dense.py:switch-16 --workdir runs/switch-16
           (or another of EXPERTS); all of them: python -m experiments.switch_vs_dense
Hardware:  two cores of a laptop or a small server, 4 GB of memory.
Time:      2 to 3 minutes a model.
Expected:  validation loss 4.174 nats per token for dense, 4.139, 4.120 and 4.113 for switch-4, -16 and -64 (seed 0, the
           library of Python 3.11.7 as corpus, digest a2b553f05801).
"""

from ml_collections import ConfigDict

from moe_jax.configuration import require_name

EXPERTS = {"dense": 0, "switch-4": 4, "switch-16": 16, "switch-64": 64}
"""Experts of a sparse layer, by model."""


def get_config(model: str = "switch-16") -> ConfigDict:
    """Returns one of EXPERTS; a sparse model has experts of the dense width in every other feed-forward layer."""
    require_name(model, EXPERTS, "model")
    config = ConfigDict()
    config.name = model
    config.steps = 350
    config.eval_every = 50
    config.eval_batches = 16
    config.checkpoint_every = 175

    config.data = ConfigDict()
    config.data.corpus = "python_source"
    config.data.tokenizer = "bpe:1024"
    config.data.sequence_length = 128
    config.data.batch_size = 16

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 40

    config.model = ConfigDict()
    config.model.vocab_size = 1024
    config.model.num_layers = 4
    config.model.model_dim = 192
    config.model.num_heads = 2
    config.model.ffn_dim = 768
    config.model.ffn = "relu"
    config.model.positions = "t5"
    if EXPERTS[model]:
        config.model.moe_layers = (1, 3)
        config.model.moe = ConfigDict()
        config.model.moe.num_experts = EXPERTS[model]
        config.model.moe.router = "switch"
        config.model.moe.capacity_factor = 1.25
        config.model.moe.eval_capacity_factor = 2.0
        config.model.moe.group_size = 2048
    return config


def get_quick_config(model: str = "switch-16") -> ConfigDict:
    """Returns a much smaller and shorter run, to see how things work; its losses mean little."""
    config = get_config(model)
    config.steps = 100
    config.eval_every = 20
    config.eval_batches = 4
    config.optimizer.warmup_steps = 10
    config.model.model_dim = 128
    config.model.ffn_dim = 512
    return config
