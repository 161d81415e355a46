"""Dense against GLaM's mixtures at equal active FLOPs and parameters, in three sizes, for two CPU cores.

Command:   python -m moe_jax train configs/laptop/glam.py:glam-small-16 --workdir runs/glam-small-16
           (or another of MODELS); all of them: python -m experiments.glam
Hardware:  two cores of a laptop or a small server, 4 GB of memory.
Time:      the study 1 h 55 min on two cores with AVX-512, of which training took 102 minutes, two runs at a time, the
           questions 11 and timing 2; the machine had other work at times.
Expected:  nats per token, three seeds: tiny 3.456 dense, 3.451, 3.365, 3.349 with 4, 16, 64 experts; medium 3.054
           dense, 2.775 with 16; six seeds: small 3.194 dense, 3.185, 3.066, 2.984.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from moe_jax.configuration import require_name

SIZES = {"tiny": 32, "small": 48, "medium": 64}
"""Model widths."""

EXPERTS = {"tiny": (4, 16, 64), "small": (4, 16, 64), "medium": (16,)}
"""What the study has of each size beside the dense model; in the largest, which takes longest, one."""


class Kind(NamedTuple):
    """A model's size, a key of SIZES, and its number of experts, 0 for a dense one."""

    size: str
    experts: int


MODELS = {
    f"glam-{size}-{experts}" if experts else f"dense-{size}": Kind(size, experts)
    for size in SIZES
    for experts in (0, *EXPERTS[size])
}

ROUTER_SPREAD = 0.55
"""Standard deviation of the router's first logits: what 0.02 for its weights gives at GLaM's smallest width, 768."""


def get_config(model: str = "glam-small-16") -> ConfigDict:
    """Returns one of MODELS; in a sparse one the first feed-forward layer of each two has experts.

    As in the authors' code (praxis): decoder only, GELU-gated dense layers, experts without a gate, no biases, relative
    positions, an output tied to the embedding, the two best experts always, with seats for twice an even share of the
    tokens.
    """
    require_name(model, MODELS, "model")
    size, experts = MODELS[model]
    config = ConfigDict()
    config.name = model
    config.steps = 3000
    config.eval_every = 250
    config.eval_batches = 32
    config.checkpoint_every = 1500

    config.data = ConfigDict()
    config.data.corpus = "python_source"
    config.data.tokenizer = "bpe:1024"
    config.data.sequence_length = 128
    config.data.batch_size = 16

    config.optimizer = ConfigDict()
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.07
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = None

    config.model = ConfigDict()
    config.model.vocab_size = 1024
    config.model.num_layers = 4
    config.model.ffn = "geglu"
    config.model.positions = "t5"
    config.model.tie_embeddings = True
    if experts:
        config.model.moe_layers = (0, 2)
        config.model.moe = ConfigDict()
        config.model.moe.num_experts = experts
        config.model.moe.router = "gshard"
        config.model.moe.k = 2
        config.model.moe.ffn = "gelu"
        # The authors' factor of 2 counts tokens, this one both choices of each.
        config.model.moe.capacity_factor = 1.0
        config.model.moe.group_size = 2048
        config.model.moe.losses = {"balance_loss": 0.01}
        config.model.moe.router_options = {"second_policy": "all"}
    set_width(config, SIZES[size], head_dim=16)
    return config


def get_quick_config(model: str = "glam-small-16") -> ConfigDict:
    """Returns a much shorter run, to see how things work; its losses mean little."""
    config = get_config(model)
    config.steps, config.eval_every, config.checkpoint_every = 120, 20, 120
    config.eval_batches = 4
    config.optimizer.warmup_steps = 20
    return config


def set_width(config: ConfigDict, width: int, head_dim: int) -> None:
    """Sets the model's width, and that of its experts so that a token costs what it does in the dense model.

    Of a layer the dense network has 3 * D * F weights, and a token meets 4 * D * X of its two experts' and D * E of the
    router's; with X = (3 * F - E) / 4 both are the same number of weights and of operations.
    """
    model = config.model
    model.model_dim, model.num_heads, model.ffn_dim = width, width // head_dim, 4 * width
    model.relative_bias_std = width**-0.5
    if "moe" in model:
        model.moe.expert_dim = (3 * model.ffn_dim - model.moe.num_experts) // 4
        model.moe.router_options.init_std = ROUTER_SPREAD / width**0.5
