"""The configuration of a training run, validated before anything is compiled or written."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moe_jax.configuration import build, errors_within, require
from moe_jax.data.config import DataConfig
from moe_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer and its learning-rate schedule.

    Attributes:
      name: `adamw` or `adafactor`.
      learning_rate: peak of the schedule, after warm-up.
      schedule: `cosine` falls to `final_fraction` of the peak at the last step; `inverse_sqrt` falls as
        sqrt(warmup_steps / step); `constant` stays at the peak.
      warmup_steps: steps of linear warm-up from 0.
      final_fraction: final learning rate of the cosine schedule, relative to the peak.
      decay_share: share of the steps, the last ones, in which the schedule is multiplied by a line that falls from 1
        to 0. With `constant` this is warmup-stable-decay (Hu et al. 2024, MiniCPM, section 4).
      beta1, beta2: AdamW's moment decays; None takes 0.9 and 0.99. Adafactor has neither.
      weight_decay: decoupled decay of matrices, not of scales and biases. Each step shrinks them by the fraction
        learning rate * weight_decay.
      clip_norm: global gradient norm above which gradients are scaled down to it; None never scales them.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.1
    decay_share: float = 0.0
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a positive number")
        require(self.warmup_steps >= 1, "warmup_steps", self.warmup_steps, "an integer of at least 1")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "between 0 and 1")
        require(0 <= self.decay_share <= 1, "decay_share", self.decay_share, "between 0 and 1")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, name, value, "at least 0 and below 1, or None")
            require(value is None or self.name == "adamw", name, value, "None with adafactor, which has no such decay")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number of at least 0")
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "positive, or None")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of a run's mesh; see `moe_jax.training.mesh`. All 1 is one device.

    Attributes:
      data: devices that hold copies of the parameters and divide the batch.
      fsdp: devices that divide the batch and also store parameters and optimizer state in parts, gathered for use.
      expert: devices that divide the batch and the experts.
      tensor: devices that divide the width of each layer.
    """

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            require(size >= 1, field.name, size, "an integer of at least 1")

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.token_shards * self.tensor

    @property
    def token_shards(self) -> int:
        """Number of parts that a batch is divided into: along data, fsdp and expert."""
        return self.data * self.fsdp * self.expert


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Initial parameters from another run's last checkpoint; the optimizer starts anew.

    Attributes:
      run: directory of the other run, absolute or beside this one's.
      parts: `all` takes all parameters, as in fine-tuning. `outside_mixtures` takes those outside mixtures that both
        models have with the same path and shape, and draws the others (Switch Transformer, section 4.2).
    """

    run: str
    parts: Literal["all", "outside_mixtures"] = "all"


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Distillation: the probabilities of another run, the teacher, are additional targets.

    See Hinton et al. 2015, and Switch Transformer, section 4.2.

    Attributes:
      run: directory of the teacher, absolute or beside this run's; its last checkpoint is used.
      share: share of the teacher's probabilities in the loss; the text has the rest.
    """

    run: str
    share: float = 0.25

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. With the corpus and the software's versions it determines all metrics.

    Attributes:
      name: name of the model in reports, for example `switch-16`.
      model: the model.
      data: the text and the task.
      optimizer: the optimizer and its schedule.
      steps: optimizer steps.
      mesh: the devices; metrics are the same on any mesh.
      accumulation: number of consecutive parts of a batch; more parts need less memory.
      seed: seed of the initialisation, the data order, dropout and the routers' draws.
      start: another run's parameters to start from; None draws them.
      distillation: the teacher; None trains on the text alone.
      eval_every: steps between evaluations; there is also one before the first step and one after the last.
      eval_batches: number of fixed validation batches of an evaluation.
      eval_all_at_end: whether the evaluation after the last step takes all validation batches instead.
      log_every: steps between lines of training metrics.
      checkpoint_every: steps between checkpoints; there is also one after the last step.
    """

    name: str
    model: ModelConfig
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    steps: int = 1000
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    accumulation: int = 1
    seed: int = 0
    start: StartConfig | None = None
    distillation: DistillationConfig | None = None
    eval_every: int = 100
    eval_batches: int = 8
    eval_all_at_end: bool = False
    log_every: int = 10
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "eval_every", "eval_batches", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        require(0 <= self.seed < 2**32, "seed", self.seed, "an integer of at least 0 and below 2**32")
        require(
            self.model.vocab_size == self.data.vocab_size,
            "model.vocab_size",
            self.model.vocab_size,
            f"{self.data.vocab_size}, the vocabulary of data.tokenizer={self.data.tokenizer!r} and its task",
        )
        require(
            self.optimizer.warmup_steps < self.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"fewer than steps ({self.steps})",
        )
        self._check_task()
        accepted = f"None with optimizer.name={self.optimizer.name!r}: its factored moments cannot move with an expert"
        for moe, field in self.model.mixtures.items():
            with errors_within(f"model.{field}"):
                for tokens in (self.data.batch_size * length for length in self.lengths):
                    divides = moe.group_size is None or tokens % moe.group_size == 0
                    require(divides, "group_size", moe.group_size, f"a divisor of {tokens}, the tokens of a step")
                every = moe.parallel.rebalance_every
                movable = every is None or self.optimizer.name == "adamw"
                require(movable, "parallel.rebalance_every", every, accepted)
        self._check_mesh()

    def _check_task(self) -> None:
        """Raises ConfigError if the model does not fit the task."""
        task, model, with_task = self.data.task, self.model, f"with data.task={self.data.task_name!r}"
        architecture = "decoder" if task.target_length is None else "encoder_decoder"
        accepted = f"{architecture!r} {with_task}"
        require(model.architecture == architecture, "model.architecture", model.architecture, accepted)
        require(model.causal == task.causal, "model.causal", model.causal, f"{task.causal} {with_task}")
        length, chunk = self.lengths[-1], model.loss_chunk
        field = "data.sequence_length" if task.target_length is None else "data.task.target_length"
        fits = chunk is None or length % chunk == 0
        require(fits, "model.loss_chunk", chunk, f"a divisor of {field} ({length}), or None")
        for name, asked in (("distillation", self.distillation is not None), ("data.task", task.scores_answers)):
            accepted = f"None with {name}, which needs all logits at once"
            require(chunk is None or not asked, "model.loss_chunk", chunk, accepted)

    def _check_mesh(self) -> None:
        batch, unit, shards = self.data.batch_size, self.sequences_per_group, self.mesh.token_shards
        share, tokens = f"each of the {shards} devices that divide a batch", batch * self.lengths[-1]
        accepted = f"a multiple of {shards}, so that {share} gets equally many sequences"
        require(batch % shards == 0, "data.batch_size", batch, accepted)
        accepted = f"a divisor of {tokens // shards}, the tokens of {share}"
        for moe, field in self.model.mixtures.items():
            own = sequences_of_whole_groups(moe.group_size, self.lengths)
            require(batch % (own * shards) == 0, f"model.{field}.group_size", moe.group_size, accepted)
        accepted = f"a divisor of {batch // (unit * shards)}, the sequences (or whole routing groups) of {share}"
        require(batch % (unit * shards * self.accumulation) == 0, "accumulation", self.accumulation, accepted)
        for moe, field in self.model.mixtures.items():
            one = self.mesh.size == 1 or moe.dropout == 0 or moe.ffn == "linear"
            accepted = "0 on more than one device, where the draws would differ from those on one device"
            require(one, f"model.{field}.dropout", moe.dropout, accepted)
            accepted = f"a divisor of model.{field}.num_experts ({moe.num_experts})"
            require(moe.num_experts % self.mesh.expert == 0, "mesh.expert", self.mesh.expert, accepted)
            accepted = f"a divisor of the experts' width ({moe.expert_dim})"
            require(moe.expert_dim % self.mesh.tensor == 0, "mesh.tensor", self.mesh.tensor, accepted)

    @property
    def sequences_per_group(self) -> int:
        """Smallest number of sequences whose tokens make whole routing groups, for every mixture and stack."""
        return math.lcm(*(sequences_of_whole_groups(moe.group_size, self.lengths) for moe in self.model.mixtures))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per sequence of each stack; the decoder's comes last."""
        lengths = self.data.sequence_length, self.data.task.target_length or 0
        return lengths[: len(self.model.stacks)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Builds a run's configuration from nested dictionaries; raises ConfigError if it cannot run."""
        return build(cls, values)


def sequences_of_whole_groups(group_size: int | None, lengths: Sequence[int]) -> int:
    """Counts the fewest sequences whose tokens make whole groups for each of `lengths`; 1 if a group is a sequence."""
    return 1 if group_size is None else math.lcm(*(math.lcm(group_size, length) // length for length in lengths))
