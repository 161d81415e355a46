"""Dense against Switch at equal FLOPs per token, for one data-centre GPU.

Command:   python -m experiments.switch_vs_dense --preset gpu
Hardware:  one GPU; bfloat16 compute, float32 router and parameters. Time and memory not measured yet.
Expected:  not measured yet.
"""

from ml_collections import ConfigDict

from configs.laptop import switch_vs_dense as laptop


def get_config(model: str = "switch-16") -> ConfigDict:
    """Returns the laptop's comparison with 46 million active and up to 839 million parameters, on the larger corpus."""
    config = laptop.get_config(model)
    config.steps = 10_000
    config.eval_every = 250
    config.eval_batches = 32
    config.checkpoint_every = 1000
    config.data.corpus = "python_source/installed"
    config.data.tokenizer = "bpe:8192"
    config.data.sequence_length = 512
    config.data.batch_size = 64
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.model.vocab_size = 8192
    config.model.num_layers = 12
    config.model.model_dim = 512
    config.model.num_heads = 8
    config.model.ffn_dim = 2048
    config.model.dtype = "bfloat16"
    if "moe" in config.model:
        config.model.moe_layers = tuple(range(1, 12, 2))
        config.model.moe.group_size = 4096
    return config
