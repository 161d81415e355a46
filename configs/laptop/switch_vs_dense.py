"""Draft."""

from ml_collections import ConfigDict


def get_config(model: str = "switch-16") -> ConfigDict:
    config = ConfigDict()
    config.name = model
    config.steps = 600
    config.eval_every = 50
    config.eval_batches = 8
    config.checkpoint_every = 200
    config.data = ConfigDict()
    config.data.tokenizer = "bpe:1024"
    config.data.sequence_length = 128
    config.data.batch_size = 32
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 60
    config.model = ConfigDict()
    config.model.vocab_size = 1024
    config.model.num_layers = 4
    config.model.model_dim = 192
    config.model.num_heads = 2
    config.model.ffn_dim = 768
    if model != "dense":
        config.model.moe_layers = (1, 3)
        config.model.moe = ConfigDict()
        config.model.moe.num_experts = int(model.removeprefix("switch-"))
        config.model.moe.group_size = 4096
    return config
