"""How many parameters a decoder has and how many of them one token uses, from its configuration alone.

V vocabulary, D model width, H heads, F width of a feed-forward network, E experts.
"""

import dataclasses
import math

from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.models.config import ModelConfig
from moe_jax.routing import ROUTERS

RELATIVE_BUCKETS = 32
"""Rows of the relative position table with `positions="t5"`."""


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of a decoder by component, over all layers.

    Attributes:
      embedding: token embedding [V, D].
      attention: query, key, value and output projections, without biases.
      positions: the relative position table [32, H], shared by all layers; 0 with rotary positions.
      norms: scales [D], two per layer and one at the end.
      ffn: feed-forward networks of the dense layers.
      experts: all experts of the sparse layers.
      router: projections [D, E] of the sparse layers.
      output: projection [D, V]; 0 when it is the embedding's transpose.
      idle_experts: those of `experts` that a token asking for k experts per sparse layer leaves unused.
    """

    embedding: int
    attention: int
    positions: int
    norms: int
    ffn: int
    experts: int
    router: int
    output: int
    idle_experts: int

    @property
    def total(self) -> int:
        """All parameters."""
        dense = self.embedding + self.attention + self.positions + self.norms + self.ffn + self.output
        return dense + self.experts + self.router

    @property
    def active(self) -> int:
        """Parameters that one token uses: all but the experts it does not ask for. The whole embedding counts."""
        return self.total - self.idle_experts


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts the parameters of a decoder of `config`; optimizer state and router state are none."""
    sparse, width = len(config.moe_layers), config.model_dim
    router, experts, idle = _sparse_layer(config) if sparse else (0, 0, 0)
    return ParameterCount(
        embedding=config.vocab_size * width,
        attention=config.num_layers * attention_parameters(config),
        positions=RELATIVE_BUCKETS * config.num_heads if config.positions == "t5" else 0,
        norms=(2 * config.num_layers + 1) * width,
        ffn=(config.num_layers - sparse) * network_parameters(config, config.ffn_dim),
        experts=sparse * experts,
        router=sparse * router,
        output=0 if config.tie_embeddings else width * config.vocab_size,
        idle_experts=sparse * idle,
    )


def attention_parameters(config: ModelConfig) -> int:
    """Weights of one layer's four attention projections."""
    return 2 * config.model_dim * config.head_width * (config.num_heads + config.kv_heads)


def network_parameters(config: ModelConfig, hidden: int) -> int:
    """Weights of one feed-forward network of width `hidden`: a dense layer's or an expert's."""
    return sum(math.prod(shape) for shape in FFN_KINDS[config.ffn].shapes(config.model_dim, hidden).values())


def _sparse_layer(config: ModelConfig) -> tuple[int, int, int]:
    """Of one sparse layer: the router's parameters, all experts', and those of experts that a token leaves unused."""
    moe = config.moe
    expert = network_parameters(config, config.expert_dim)
    router = config.model_dim * moe.num_experts if ROUTERS[moe.router].has_parameters else 0
    return router, moe.num_experts * expert, (moe.num_experts - moe.k) * expert
