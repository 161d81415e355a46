"""Configurations of the studies of Switch Transformer (Fedus et al. 2021, arXiv:2101.03961), for one data-centre GPU.

Command:   python -m experiments.switch_transformer --preset gpu
Hardware:  one GPU; bfloat16 compute, float32 router and parameters. On an H100 a step of experts/dense takes 63 ms and
           26 J; compilation takes half a minute for each model, more if several compile at a time. Memory: not
           measured yet.
Expected:  not measured yet.
"""

from ml_collections import ConfigDict

from configs.laptop import switch_transformer as laptop

SHAPE = laptop.Shape(
    model_dim=512,
    ffn_dim=2048,
    num_layers=6,
    num_heads=8,
    head_dim=64,
    steps=10_000,
    long_steps=40_000,
    batch_size=64,
    group_size=2048,
    sentinels=32,
    function_length=512,
    name_length=128,
)
STUDIES = laptop.make_studies(SHAPE)


def get_config(model: str = "experts/dense") -> ConfigDict:
    """Returns a model of the laptop's studies in T5-Small's shape, 48 million active parameters, on a larger corpus."""
    study, _, name = model.partition("/")
    config = laptop.dense(SHAPE, name)
    config.eval_every = 250
    config.eval_batches = 32
    config.checkpoint_every = 1000
    config.data.corpus = "python_source/installed"
    config.data.tokenizer = "bpe:8192"
    config.data.sequence_length = 512
    config.data.task.target_length = 128
    config.optimizer.learning_rate = 0.03
    config.optimizer.warmup_steps = 1000
    config.model.vocab_size = 8192 + SHAPE.sentinels
    config.model.dtype = "float32" if study == "precision" else "bfloat16"
    config = laptop.with_fields(config, STUDIES[study][name])
    if config.data.task.kind == "text_to_text":
        config.data.tokenizer_corpus = "python_source/installed"
    return config
