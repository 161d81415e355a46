"""Floating-point operations per token, from the configuration alone.

Conventions: a multiply and an add are two operations; only matrix products count (norms, softmax, rotary positions,
activations and gathers do not); attention counts the products that are computed, what a mask hides of them included;
the backward pass costs twice the forward pass; rematerialisation is not counted.

D model width, H heads, S sequence, V vocabulary, E experts, K choices per token, C capacity.
"""

import dataclasses
import math

from moe_jax.accounting.parameters import (
    attention_parameters,
    count_dense,
    count_expert,
    count_shared,
    output_parameters,
)
from moe_jax.experts.execution import Work
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.plan import plan_here
from moe_jax.layers.attention import computed_keys
from moe_jax.models.config import ModelConfig, MoEConfig
from moe_jax.routing import ROUTERS
from moe_jax.routing.capacity import capacity_per_expert


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Forward operations per token by component, over all layers; with two stacks, a mean over the tokens of both.

    Attributes:
      attention_projections: query, key, value and output; in sparse attention of the K experts a token asks for.
      attention_scores: scores and the weighted sum of values.
      router: logits.
      ffn: feed-forward networks; in sparse layers the K experts that a token asks for, and what all tokens share.
      output: logits over the vocabulary.
      mixtures_executed: what experts add to `ffn` and `attention_projections` as they are carried out, with their empty
        seats, without dropped tokens, and with the products that move tokens to their seats and back where these are
        matrix products; negative where seats are fewer than choices.
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


def flops_per_token(config: ModelConfig, sequence_length: int, target_length: int = 0) -> FlopCount:
    """Counts the operations of a model of `config` per token.

    Args:
      config: the model.
      sequence_length: of a decoder's text, or of an encoder's.
      target_length: of the text of a decoder that has an encoder.
    """
    stacks = config.stacks
    lengths = (sequence_length, target_length)[: len(stacks)]
    counts = [_stack_flops(stack, length) for stack, length in zip(stacks, lengths, strict=True)]
    output = 2.0 * config.model_dim * config.vocab_size
    if len(stacks) == 1:
        return dataclasses.replace(counts[0], output=output)
    whole = _cross_attention(config, sequence_length, target_length) | {"output": output * target_length}

    def mean(name: str) -> float:
        by_stack = sum(getattr(count, name) * length for count, length in zip(counts, lengths, strict=True))
        return (by_stack + whole.get(name, 0)) / sum(lengths)

    return FlopCount(**{field.name: mean(field.name) for field in dataclasses.fields(FlopCount)})


def _cross_attention(config: ModelConfig, sequence_length: int, target_length: int) -> dict[str, int]:
    """Of a decoder's attention to the encoder, over both texts: targets ask and get, the encoder's tokens are seen."""
    pair = 4 * config.num_heads * config.head_width
    target = 4 * config.model_dim * config.head_width * config.num_heads
    seen = 4 * config.model_dim * config.head_width * config.kv_heads
    return {
        "attention_projections": config.num_layers * (target_length * target + sequence_length * seen),
        "attention_scores": config.num_layers * target_length * sequence_length * pair,
    }


def _stack_flops(config: ModelConfig, length: int) -> FlopCount:
    """Of one stack, whose text has sequences of `length`, without logits and what a decoder attends to besides."""
    skipped = len(config.depth_layers)
    networks, attentions = (
        sum(config.sparse(i, place) for i in range(config.num_layers)) for place in ("feed_forward", "attention")
    )
    # Of the layers that only some tokens run, a token runs their share; there it meets only its like.
    chosen = math.ceil(round(config.depth.capacity * length, 6)) if skipped else length
    share, whole = chosen / length, config.num_layers - skipped
    layers = whole + skipped * share
    keys = whole * computed_keys(length, config.causal) + skipped * share * computed_keys(chosen, config.causal)
    moe, projections = config.moe, 2 * (attention_parameters(config) - output_parameters(config))
    router, executed = 0, 0.0
    ffn = (layers - networks) * 2 * count_dense(config).matrices
    attention = layers * 2 * attention_parameters(config)
    if networks or attentions:
        group = moe.group_size or length
        router = 2 * moe.checked_router().parameter_counts(group, config.model_dim)[0]
    if networks:
        expert = 2 * count_expert(config).matrices
        ffn += networks * (moe.k * expert + 2 * count_shared(config).matrices)
        run = _executed_slots if ROUTERS[moe.router].mixes else _executed
        executed += networks * (run(moe, config.model_dim, config.model_dim, expert, group) - moe.k * expert)
    if attentions:
        attention += attentions * (moe.k - 1) * projections
        for width in (config.num_heads * config.head_width, 2 * config.kv_heads * config.head_width):
            expert = 2 * config.model_dim * width
            executed += attentions * (_executed(moe, config.model_dim, width, expert, group) - moe.k * expert)
    return FlopCount(
        attention_projections=float(attention),
        attention_scores=float(keys * 4 * config.num_heads * config.head_width),
        router=float((networks + 2 * attentions) * router + skipped * 2 * config.model_dim),
        ffn=float(ffn),
        output=0.0,
        mixtures_executed=float(executed),
    )


def _executed(moe: MoEConfig, model_dim: int, width: int, expert: int, group: int) -> float:
    """Counts the operations of a mixture per token of a `group` of tokens in training.

    One expert costs a token `expert`, and its results have `width`.
    """
    capacity = capacity_per_expert(moe.capacity_factor, group, moe.k, moe.num_experts, moe.capacity_rule)
    work = Work(group, moe.k, moe.num_experts, capacity, expert, model_dim + width)
    return EXECUTIONS[plan_here(moe.execution).execution].flops_per_token(work)


def _executed_slots(moe: MoEConfig, model_dim: int, width: int, expert: int, group: int) -> float:
    """Counts as `_executed` where experts run slots that mix a group's tokens: mixing, and each slot as a token."""
    capacity = capacity_per_expert(1.0, group, moe.k, moe.num_experts)
    slots = moe.num_experts * capacity
    work = Work(slots, 1, moe.num_experts, capacity, expert, model_dim + width)
    flops_per_slot = EXECUTIONS[plan_here(moe.execution).execution].flops_per_token(work)
    return 2.0 * slots * (model_dim + width) + slots / group * flops_per_slot
