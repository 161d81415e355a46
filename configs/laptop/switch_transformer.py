"""Configurations of the studies of Switch Transformer (Fedus et al. 2021, arXiv:2101.03961), for two CPU cores.

Command:   python -m experiments.switch_transformer STUDY for one of STUDIES, or without STUDY for all;
           python -m moe_jax train configs/laptop/switch_transformer.py:STUDY/MODEL --workdir runs/STUDY/MODEL
           for one model (a run that it starts from, or its teacher, must be in runs/STUDY/MODEL already)
Hardware:  two cores of a laptop or a small server, 4 GB of memory.
Time:      minutes on two cores with AVX-512, two runs at a time: `experts_longer` 60, `experts` 41, `distillation` 32,
           `architectures` 30, `distillation_sizes` 16, `fine_tuning` 14, `exploration` and `no_token_left_behind` 12,
           `attention` and `initialization` 10 each, `distillation_fine_tuned` 5, `precision` 4, timing 5. Without
           AVX-512 `experts` took 150.
Expected:  nats per token, four seeds: `experts_longer` 2.000 dense, 1.978, 1.961, 1.958 with 4, 16, 64 experts; six:
           `initialization` 2.829 and 2.818 at scales 0.1 and 1.0; three: `experts` 2.108 dense, 2.089, 2.091, 2.101,
           2.139 with 4, 16, 64, 256; `architectures` 2.316 dense, 2.321 switch-1.25, 2.282 switch-wide-1.0;
           `exploration` 2.321 argmax, 2.355 sample; `distillation` 2.108 student, 2.148 distilled, 2.132
           distilled-init, 2.045 distilled-init-mix; the others in their reports.

The models are T5s of two layers a stack, with heads of T5's width, trained on span corruption of Python source. A
sparse model has experts in the second layer of each stack. They are narrower than the dense network by the cost of the
router, so that active FLOPs are equal. The router is initialised like all matrices, with variance scale / D (section
2.4).
"""

import functools
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# Values of a configuration by dotted field.
Fields = dict[str, Any]

EXPERTS = 16
"""Experts of a sparse layer, in studies that do not vary their number."""


class Shape(NamedTuple):
    """Sizes that the models of all studies share.

    Attributes:
      model_dim: D.
      ffn_dim: F of the dense model.
      num_layers: layers of a stack; every second one is sparse.
      num_heads: attention heads.
      head_dim: width of a head.
      steps: steps of training.
      long_steps: steps of training in studies of the number of experts, because more experts need more steps to gain.
      batch_size: pairs of texts per step.
      group_size: tokens that share a capacity.
      sentinels: tokens that stand for hidden spans.
      function_length: tokens of a function's code in fine-tuning.
      name_length: tokens of a function's name in fine-tuning, with the end.
    """

    model_dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    steps: int
    long_steps: int
    batch_size: int
    group_size: int
    sentinels: int
    function_length: int
    name_length: int

    def switch(self, experts: int = EXPERTS, factor: float = 1.25, routers: int = 1, **fields: Any) -> Fields:
        """Returns a Switch mixture; its experts are narrower than a dense network by the FLOPs of `routers` routers."""
        moe = {"num_experts": experts, "capacity_factor": factor, "eval_capacity_factor": 2.0}
        moe |= {"expert_dim": self.ffn_dim - routers * experts // 2}
        return self.sparse("switch", moe | fields)

    def top_2(self, factor: float, width: float = 2.0) -> Fields:
        """Returns a top-2 mixture; both experts together are `width` times as wide as Switch's.

        `factor` is the capacity factor relative to tokens, with the seats of both choices.
        """
        moe = {"num_experts": EXPERTS, "k": 2, "capacity_factor": factor / 2}
        width *= self.ffn_dim - EXPERTS // 2
        return self.sparse("gshard", moe | {"eval_capacity_factor": 1.0, "expert_dim": round(width / 2)})

    def sparse(self, router: str, moe: Fields) -> Fields:
        """Returns a model with this mixture in every second layer; its field `router` has the options alone."""
        options = {"init_std": self.model_dim**-0.5} | moe.get("router", {})
        moe |= {"group_size": self.group_size, "router": {"kind": router} | options}
        return {"model.moe_layers": tuple(range(1, self.num_layers, 2)), "model.moe": moe}

    def started(self, scale: float) -> Fields:
        """Returns Switch with all matrices, the router's too, initialised at this scale."""
        options = {"init_std": math.sqrt(scale / self.model_dim)}
        return self.switch(router=options) | {"model.init_scale": scale}

    def wider(self, numerator: int, denominator: int) -> Fields:
        """Returns a model wider by the fraction numerator / denominator, with heads wider by as much."""
        fields = {"model_dim": self.model_dim, "attention.head_dim": self.head_dim}
        return {f"model.{name}": size * numerator // denominator for name, size in fields.items()}

    def longer(self, times: int = 1) -> Fields:
        """Returns a training of `times` times `long_steps`."""
        part = {"eval_every": self.long_steps // 15, "checkpoint_every": self.long_steps // 3}
        return {"steps": times * self.long_steps} | part

    def shorter(self) -> Fields:
        """Returns a training of a fifth of the steps."""
        steps = self.steps // 5
        return {"steps": steps, "eval_every": steps // 5, "checkpoint_every": steps}

    def fine_tuning(self, pretrained: str, dropout: float = 0.1) -> Fields:
        """Returns the fine-tuning of a pre-trained model to name functions, on few examples."""
        task = {"kind": "text_to_text", "target_length": self.name_length, "sentinels": self.sentinels}
        fields = {"data.task": task | {"train_examples": 4096}, "data.sequence_length": self.function_length}
        fields |= {"data.corpus": "python_functions", "data.tokenizer_corpus": "python_source"}
        # All validation pairs that there are.
        fields |= {"eval_batches": 2048 // self.batch_size}
        fields |= {"optimizer.learning_rate": 0.02, "optimizer.warmup_steps": 20, "model.dropout": dropout}
        return fields | self.shorter() | start(pretrained)


def start(run: str, parts: str = "all") -> Fields:
    """Returns a run that starts from another's parameters."""
    return {"start": {"run": f"../{run}", "parts": parts}}


def taught(teacher: str, share: float) -> Fields:
    """Returns a run with a teacher, whose probabilities have this share of the loss."""
    return {"distillation": {"run": f"../{teacher}", "share": share}}


def distilled(teacher: str) -> Fields:
    """Returns the paper's best distillation: the teacher's parameters outside mixtures, and a share of a quarter."""
    return start(teacher, "outside_mixtures") | taught(teacher, 0.25)


def make_studies(shape: Shape) -> dict[str, dict[str, Fields]]:
    """Returns the differences from the dense model, by study and model."""
    switch, top_2, tuned, longer, twice = shape.switch, shape.top_2, shape.fine_tuning, shape.longer(), shape.longer(2)
    attention = {
        "experts-attention": switch(places=("attention",)) | {"model.ffn_dim": shape.ffn_dim - EXPERTS // 2},
        "experts-both": switch(routers=3, places=("feed_forward", "attention")),
    }
    bfloat16 = {"model.dtype": "bfloat16"}
    return {
        "experts": {"dense": longer} | {f"switch-{experts}": switch(experts) | longer for experts in (4, 16, 64, 256)},
        "experts_longer": {"dense": twice} | {f"switch-{experts}": switch(experts) | twice for experts in (4, 16, 64)},
        "architectures": {
            "dense": {},
            # T5-Large against T5-Base: twice the layers, four thirds of the width.
            "dense-large": shape.wider(4, 3)
            | {"model.num_layers": 2 * shape.num_layers, "model.ffn_dim": shape.ffn_dim * 4 // 3},
            "top2-2.0": top_2(2.0),
            "switch-2.0": switch(factor=2.0),
            "top2-1.25": top_2(1.25),
            "switch-1.25": switch(),
            "top2-1.0": top_2(1.0),
            "switch-1.0": switch(factor=1.0),
            "switch-wide-1.0": switch(factor=1.0) | shape.wider(7, 6),
            "top2-matched-1.25": top_2(1.25, width=1.0),
        },
        "precision": {
            "float32": switch(),
            "bfloat16": switch(router_dtype="bfloat16") | bfloat16,
            "selective": switch() | bfloat16,
        },
        "initialization": {f"scale-{scale}": shape.started(scale) | shape.shorter() for scale in (0.1, 1.0)},
        "fine_tuning": {
            "dense-0.1": tuned("experts/dense"),
            "switch-0.1": switch() | tuned("experts/switch-16"),
            "switch-0.2": switch() | tuned("experts/switch-16", 0.2),
            "switch-0.3": switch() | tuned("experts/switch-16", 0.3),
            "switch-0.1-expert-0.4": switch(dropout=0.4) | tuned("experts/switch-16"),
        },
        # As many steps as their teachers, as in the paper: with fewer, a student gains mostly by training longer.
        "distillation": {
            "student": longer,
            "teacher": switch(64) | longer,
            "distilled": longer | taught("experts/switch-64", 1.0),
            "distilled-init": longer | distilled("experts/switch-64") | taught("experts/switch-64", 1.0),
            "distilled-init-mix": longer | distilled("experts/switch-64"),
            "init-only": longer | start("experts/switch-64", "outside_mixtures"),
        },
        "distillation_sizes": {"student": longer}
        | {f"teacher-{experts}": switch(experts) | longer for experts in (16, 64, 256)}
        | {f"distilled-{experts}": longer | distilled(f"experts/switch-{experts}") for experts in (16, 64, 256)},
        "distillation_fine_tuned": {
            "student": tuned("experts/dense"),
            "teacher": switch(64) | tuned("experts/switch-64"),
            "distilled": tuned("experts/dense") | taught("distillation_fine_tuned/teacher", 0.25),
        },
        "attention": {"experts-ffn": switch()}
        | attention
        | {f"{name}-bfloat16": fields | bfloat16 for name, fields in attention.items()},
        "exploration": {
            name: switch(router={"exploration": name}) for name in ("argmax", "sample", "dropout", "jitter")
        },
        "no_token_left_behind": {
            "switch-1.0": switch(factor=1.0),
            # Choices of later rounds are seated after all first choices, so a token may depend on later ones.
            "rerouted-1.0": switch(factor=1.0, router={"rounds": 4}, allow_noncausal_router=True),
        },
    }


SHAPE = Shape(
    model_dim=64,
    ffn_dim=256,
    num_layers=2,
    num_heads=1,
    head_dim=64,
    steps=2000,
    long_steps=6000,
    batch_size=96,
    group_size=480,
    sentinels=8,
    function_length=60,
    name_length=10,
)
STUDIES = make_studies(SHAPE)


def get_config(model: str = "experts/dense") -> ConfigDict:
    """Returns a model of a study by its name `STUDY/MODEL`."""
    study, _, name = model.partition("/")
    return with_fields(dense(SHAPE, name), STUDIES[study][name])


def dense(shape: Shape, name: str) -> ConfigDict:
    """Returns the dense model of this shape."""
    config = ConfigDict()
    config.name = name
    config.steps = shape.steps
    config.eval_every = shape.steps // 10
    config.eval_batches = 64
    config.checkpoint_every = shape.steps

    config.data = ConfigDict()
    config.data.corpus = "python_source"
    config.data.tokenizer = "bpe:1024"
    # Short texts with one hidden span: a small T5 soon learns to attend to them.
    config.data.sequence_length = 20
    config.data.task = ConfigDict({"kind": "span_corruption", "target_length": 5, "sentinels": shape.sentinels})
    config.data.batch_size = shape.batch_size

    config.optimizer = ConfigDict()
    config.optimizer.name = "adafactor"
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.learning_rate = 0.07
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = None

    config.model = ConfigDict()
    config.model.architecture = "encoder_decoder"
    config.model.vocab_size = 1024 + shape.sentinels
    config.model.num_layers = shape.num_layers
    config.model.model_dim = shape.model_dim
    config.model.ffn_dim = shape.ffn_dim
    config.model.attention = ConfigDict({"heads": shape.num_heads, "head_dim": shape.head_dim})
    config.model.attention.positions = ConfigDict({"kind": "t5", "init_std": shape.model_dim**-0.5})
    config.model.tie_embeddings = True
    config.model.init_scale = 1.0
    return config


def with_fields(config: ConfigDict, fields: Fields) -> ConfigDict:
    """Sets dotted fields of `config` and returns it."""
    for field, value in fields.items():
        *groups, last = field.split(".")
        functools.reduce(getattr, groups, config)[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def get_quick_config(model: str = "experts/dense") -> ConfigDict:
    """Returns the model of `get_config` with few steps, for a trial run; its losses mean nothing."""
    config = get_config(model)
    config.steps, config.eval_every, config.checkpoint_every = 40, 20, 40
    config.eval_batches = 2
    config.optimizer.warmup_steps = 10
    return config
