"""Floating-point operations per token, from the configuration alone.

Conventions: a multiply and an add are two operations; only matrix products count (norms, softmax, rotary positions,
activations and gathers do not); attention counts the products that are computed, what a mask hides of them included;
the backward pass costs twice the forward pass; rematerialisation is not counted.

D model width, H heads, S sequence, V vocabulary, E experts, K choices per token, C capacity.
"""

import dataclasses
import math

from moe_jax.accounting.parameters import attention_parameters, count_dense, count_expert, count_shared
from moe_jax.experts.run import choose_execution
from moe_jax.layers.attention import computed_keys
from moe_jax.models.config import ModelConfig, MoEConfig
from moe_jax.routing import ROUTERS
from moe_jax.routing.capacity import capacity_per_expert


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Forward operations per token by component, over all layers.

    Attributes:
      attention_projections: query, key, value and output.
      attention_scores: scores and the weighted sum of values.
      router: logits.
      ffn: feed-forward networks; in sparse layers the K experts that a token asks for, and what all tokens share.
      output: logits over the vocabulary.
      ffn_executed: `ffn` as it is carried out, with the experts' empty seats, without dropped tokens, and with the
        products that move tokens to their seats and back where these are matrix products.
    """

    attention_projections: int
    attention_scores: int
    router: int
    ffn: int
    output: int
    ffn_executed: float

    @property
    def forward(self) -> int:
        """One forward pass; active compute only."""
        return self.attention_projections + self.attention_scores + self.router + self.ffn + self.output

    @property
    def training(self) -> int:
        """One forward and backward pass; active compute only."""
        return 3 * self.forward

    @property
    def executed(self) -> float:
        """One forward pass as it is carried out."""
        return self.forward - self.ffn + self.ffn_executed


def flops_per_token(config: ModelConfig, sequence_length: int) -> FlopCount:
    """Counts the operations of a decoder of `config` per token of sequences of `sequence_length`."""
    sparse, skipped = len(config.moe_layers), len(config.depth_layers)
    # Of the layers that only some tokens run, a token runs their share; there it meets only its like.
    chosen = math.ceil(round(config.depth.capacity * sequence_length, 6)) if skipped else sequence_length
    share, whole = chosen / sequence_length, config.num_layers - skipped
    layers = whole + skipped * share
    keys = whole * computed_keys(sequence_length, config.causal) + skipped * share * computed_keys(
        chosen, config.causal
    )
    dense_ffn = (layers - sparse) * 2 * count_dense(config).matrices
    router, active, executed = _sparse_layer(config, sequence_length) if sparse else (0, 0, 0.0)
    return FlopCount(
        attention_projections=round(layers * 2 * attention_parameters(config)),
        attention_scores=round(keys * 4 * config.num_heads * config.head_width),
        router=sparse * router + skipped * 2 * config.model_dim,
        ffn=round(dense_ffn + sparse * active),
        output=2 * config.model_dim * config.vocab_size,
        ffn_executed=float(dense_ffn + sparse * executed),
    )


def _sparse_layer(config: ModelConfig, sequence_length: int) -> tuple[int, int, float]:
    """Of one sparse layer: the router, the K experts of a token, and the experts as they are carried out."""
    moe = config.moe
    expert = 2 * count_expert(config).matrices
    group = moe.group_size or sequence_length
    router = 2 * moe.checked_router().weights(group, config.model_dim)[0]
    shared = 2 * count_shared(config).matrices
    executed = _executed_slots if ROUTERS[moe.router].mixes else _executed
    executed = executed(moe, config.model_dim, expert, group)
    return router, moe.k * expert + shared, executed + shared


def _executed(moe: MoEConfig, model_dim: int, expert: int, group: int) -> float:
    """What a sparse layer costs one token of a `group` of tokens in training, where one expert costs it `expert`.

    `dropless` is counted as if it dropped nothing.
    """
    capacity = capacity_per_expert(moe.capacity_factor, group, moe.k, moe.num_experts, moe.capacity_rule)
    seats = moe.num_experts * capacity
    # The masks [S, E, C] multiply every token to and from every seat.
    executed = {
        "padded": seats / group * expert,
        "one_hot": seats / group * expert + 4 * seats * model_dim,
        "dropless": moe.k * expert,
        "oracle": moe.num_experts * expert,
    }
    return float(executed[choose_execution(moe.execution)])


def _executed_slots(moe: MoEConfig, model_dim: int, expert: int, group: int) -> float:
    """The same where experts run slots that mix the tokens of a group: mixing, and each slot as if a token."""
    slots = moe.num_experts * capacity_per_expert(1.0, group, moe.k, moe.num_experts)
    executed = {
        "padded": expert,
        "one_hot": expert + 4 * slots * model_dim,
        "dropless": expert,
        "oracle": moe.num_experts * expert,
    }
    return 4.0 * slots * model_dim + slots / group * executed[choose_execution(moe.execution)]
