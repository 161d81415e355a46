"""Floating-point operations per token, from the configuration alone.

Conventions: a multiply and an add are two operations; only matrix products count (norms, softmax, rotary positions,
activations and gathers do not); attention counts the products that are computed, what a mask hides of them included;
the backward pass costs twice the forward pass; rematerialisation is not counted.

D model width, H heads, S sequence, V vocabulary, E experts, K choices per token, C capacity.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

from moe_jax.experts.execution import Work
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.plan import Plan
from moe_jax.layers.depth import tokens_that_run
from moe_jax.layers.moe import MoEConfig
from moe_jax.models.config import ModelConfig
from moe_jax.models.layer_spec import MOE, LayerSpec
from moe_jax.routing.capacity import capacity_per_expert
from moe_jax.runtime.parameters import count_multiplied

Planner = Callable[[MoEConfig], Plan]


class Counts(Counter):
    """Operations by component, whole or fractional; `update` adds another's."""


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Forward operations per token by component, over all layers; with two stacks, a mean over the tokens of both.

    Attributes:
      attention_projections: query, key, value and output; in sparse attention those of the K experts of a token.
      attention_scores: scores and the weighted sum of values.
      router: logits of routers.
      ffn: feed-forward networks; in sparse layers the K experts of a token, and the network that all tokens share.
      output: logits over the vocabulary.
      mixtures_executed: operations that the execution of experts adds to `ffn` and `attention_projections`: for empty
        seats, and for matrix products that move tokens to their seats and back. Dropped tokens are subtracted, so it is
        negative where seats are fewer than choices.
    """

    attention_projections: float
    attention_scores: float
    router: float
    ffn: float
    output: float
    mixtures_executed: float

    @property
    def forward(self) -> float:
        """One forward pass; active compute only."""
        return self.attention_projections + self.attention_scores + self.router + self.ffn + self.output

    @property
    def training(self) -> float:
        """One forward and backward pass; active compute only."""
        return 3 * self.forward

    @property
    def executed(self) -> float:
        """One forward pass as it is carried out."""
        return self.forward + self.mixtures_executed


def flops_per_token(
    config: ModelConfig, sequence_length: int, target_length: int = 0, plan: Planner = MoEConfig.plan
) -> FlopCount:
    """Counts the operations of a model of `config` per token.

    Args:
      config: the model.
      sequence_length: tokens of a decoder's text, or of an encoder's.
      target_length: tokens of the text of a decoder that has an encoder.
      plan: function that makes the plan of a mixture, which decides what is executed; by default the plan for the mesh
        of the surrounding `jax.set_mesh`, or for one device.
    """
    stacks = config.stacks
    lengths = (sequence_length, target_length)[: len(stacks)]
    output = 2.0 * config.model_dim * config.vocab_size
    counts = [count_stack(stack, length, plan) for stack, length in zip(stacks, lengths, strict=True)]
    names = [field.name for field in dataclasses.fields(FlopCount)]
    if len(stacks) == 1:
        return FlopCount(**{name: float(counts[0][name]) for name in names} | {"output": output})
    whole = count_cross_attention(config, sequence_length, target_length)
    whole["output"] = output * target_length
    for count, length in zip(counts, lengths, strict=True):
        whole.update({name: value * length for name, value in count.items()})
    return FlopCount(**{name: whole[name] / sum(lengths) for name in names})


def count_stack(config: ModelConfig, length: int, plan: Planner) -> Counts:
    """Counts one stack's operations per token of a text with sequences of `length`, by component.

    The output projection is left out, and attention to an encoder.
    """
    total = Counts()
    for spec in config.layers:
        total.update(count_layer(spec, config.model_dim, length, config.causal, plan))
    return total


def count_layer(spec: LayerSpec, model_dim: int, length: int, causal: bool, plan: Planner) -> Counts:
    """Counts one layer's operations per token of a text with sequences of `length`, by component."""
    # A token runs a layer that only some tokens run with their share; there it meets only these.
    runs = length if spec.depth is None else tokens_that_run(spec.depth.capacity, length)
    projections = spec.attention.parameters(model_dim, projects=spec.projections is None)
    total = Counts(
        attention_projections=2 * count_multiplied(projections),
        attention_scores=spec.attention.computed_keys(runs, causal) * spec.attention.pair_flops(),
    )
    if MOE not in spec.mixtures:
        total["ffn"] = 2 * count_multiplied(spec.feed_forward.parameters(model_dim))
    for name, moe in spec.mixtures.items():
        width = model_dim if name == MOE else spec.attention.mixture_widths[name]
        counted = count_mixture(moe, model_dim, width, moe.group_size or length, plan(moe))
        total["attention_projections" if name != MOE else "ffn"] += counted.pop("active")
        total.update(counted)
    if spec.depth is None:
        return total
    share = Counts({name: value * runs / length for name, value in total.items()})
    share["router"] += 2 * count_multiplied(spec.depth.parameters(model_dim))
    return share


def count_mixture(moe: MoEConfig, model_dim: int, width: int, group: int, plan: Plan) -> Counts:
    """Counts one mixture's operations per token: `active`, its `router`, and what it executes besides.

    Args:
      moe: the mixture.
      model_dim: D.
      width: width of the experts' results.
      group: tokens that share a capacity.
      plan: the way in which its experts are run.
    """
    parameters = moe.parameters(model_dim)

    def of(*starts: str) -> int:
        chosen = {path: parameter for path, parameter in parameters.items() if path.startswith(starts)}
        return 2 * count_multiplied(chosen)

    expert = of("experts_") // moe.num_experts
    executed = _executed if moe.router.slots(group, moe.setting()) is None else _executed_slots
    return Counts(
        active=moe.k * expert + of("shared"),
        router=of("router/"),
        mixtures_executed=executed(moe, model_dim + width, expert, group, plan) - moe.k * expert,
    )


def count_cross_attention(config: ModelConfig, sequence_length: int, target_length: int) -> Counts:
    """Counts a decoder's attention to the encoder over both texts: targets ask, the encoder's tokens are seen."""
    total = Counts()
    for spec in config.layers:
        attention = spec.attention.as_cross_attention()
        seen = {"key/kernel", "value/kernel"}
        for path, parameter in attention.parameters(config.model_dim).items():
            length = sequence_length if path in seen else target_length
            total["attention_projections"] += 2 * parameter.size * length * parameter.multiplies
        total["attention_scores"] += target_length * sequence_length * attention.pair_flops()
    return total


def _executed(moe: MoEConfig, width: int, expert: int, group: int, plan: Plan) -> float:
    """Counts a mixture's operations per token of a `group` of tokens in training, as its experts are run.

    One expert costs a token `expert`; `width` is that of a token and of its result together.
    """
    capacity = capacity_per_expert(moe.capacity_factor, group, moe.k, moe.num_experts, moe.capacity_rule)
    work = Work(group, moe.k, moe.num_experts, capacity, expert, width)
    return EXECUTIONS[plan.execution].flops_per_token(work)


def _executed_slots(moe: MoEConfig, width: int, expert: int, group: int, plan: Plan) -> float:
    """Counts as `_executed` where experts run slots that mix a group's tokens: mixing, and each slot as a token."""
    slots = moe.router.slots(group, moe.setting())
    work = Work(slots, 1, moe.num_experts, slots // moe.num_experts, expert, width)
    return 2.0 * slots * width + slots / group * EXECUTIONS[plan.execution].flops_per_token(work)
