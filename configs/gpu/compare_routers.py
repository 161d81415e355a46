"""Every router in one model, for one data-centre GPU.

Command:   python -m experiments.compare_routers --preset gpu
Hardware:  one GPU; bfloat16 compute, float32 router and parameters. Time and memory not measured yet.
Expected:  not measured yet.
"""

from ml_collections import ConfigDict

from configs.laptop import compare_routers as laptop


def get_config(model: str = "switch") -> ConfigDict:
    """Returns the laptop's comparison in a model of 12 layers of width 512, on the larger corpus."""
    config = laptop.get_config(model)
    config.steps = 5000
    config.eval_every = 250
    config.eval_batches = 32
    config.checkpoint_every = 1000
    config.data.corpus = "python_source/installed"
    config.data.tokenizer = "bpe:8192"
    config.data.sequence_length = 512
    config.data.batch_size = 64
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.model.vocab_size = 8192 + (config.data.task == "masked")
    config.model.num_layers = 12
    config.model.model_dim = 512
    config.model.num_heads = 8
    config.model.ffn_dim = 2048
    config.model.dtype = "bfloat16"
    if "moe" in config.model:
        config.model.moe_layers = tuple(range(1, 12, 2))
        config.model.moe.expert_dim = 2048 // config.model.moe.k
        if config.model.moe.group_size is not None:
            config.model.moe.group_size = 512 if config.model.moe.router == "soft_moe" else 4096
    return config
