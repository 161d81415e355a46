"""Dense against GLaM's mixtures at equal active FLOPs and parameters, in three sizes, for one data-centre GPU.

Command:   python -m experiments.glam --preset gpu
Hardware:  one GPU; bfloat16 compute, float32 router and parameters. On an H100 a step of dense-tiny takes 61 ms and
           24 J; the first of each model comes half a minute later, more where others are compiled beside it. Memory not
           measured yet.
Expected:  not measured yet.
"""

from ml_collections import ConfigDict

from configs.laptop import glam as laptop

SIZES = {"tiny": 320, "small": 512, "medium": 640}
"""Model widths."""


def get_config(model: str = "glam-small-16") -> ConfigDict:
    """Returns the laptop's comparison with 22, 55 and 84 million active parameters, up to 634 million in all."""
    config = laptop.get_config(model)
    size, experts = laptop.MODELS[model]
    config.steps = 10_000
    config.eval_every = 250
    config.eval_batches = 32
    config.checkpoint_every = 1000
    config.data.corpus = "python_source/installed"
    config.data.tokenizer = "bpe:8192"
    config.data.sequence_length = 512
    config.data.batch_size = 64
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_steps = 500
    config.model.vocab_size = 8192
    config.model.num_layers = 12
    config.model.dtype = "bfloat16"
    laptop.set_width(config, SIZES[size], head_dim=64)
    if experts:
        config.model.moe_layers = tuple(range(0, 12, 2))
        config.model.moe.group_size = 4096
    return config
