"""How many parameters a decoder has and how many of them one token uses, from its configuration alone.

V vocabulary, D model width, H heads, F width of a feed-forward network, E experts.
"""

import dataclasses
import math

from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.models.config import ModelConfig

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
      shared: networks of the sparse layers that every token runs, with their gates.
      router: routers of the sparse layers, and of those that only some tokens run.
      output: projection [D, V]; 0 when it is the embedding's transpose.
      idle_experts: those of `experts` that a token asking for k experts per sparse layer leaves unused.
    """

    embedding: int
    attention: int
    positions: int
    norms: int
    ffn: int
    experts: int
    shared: int
    router: int
    output: int
    idle_experts: int

    @property
    def total(self) -> int:
        """All parameters."""
        dense = self.embedding + self.attention + self.positions + self.norms + self.ffn + self.output
        return dense + self.experts + self.shared + self.router

    @property
    def active(self) -> int:
        """Parameters that one token uses: all but the experts it does not ask for. The whole embedding counts."""
        return self.total - self.idle_experts


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts the parameters of a decoder of `config`; optimizer state and router state are none."""
    sparse, width = len(config.moe_layers), config.model_dim
    router, experts, idle, shared = _sparse_layer(config) if sparse else (0, 0, 0, 0)
    return ParameterCount(
        embedding=config.vocab_size * width,
        attention=config.num_layers * attention_parameters(config),
        positions=RELATIVE_BUCKETS * config.num_heads if config.positions == "t5" else 0,
        norms=(2 * config.num_layers + 1) * width,
        ffn=(config.num_layers - sparse) * count_dense(config).total,
        experts=sparse * experts,
        shared=sparse * shared,
        router=sparse * router + len(config.depth_layers) * width,
        output=0 if config.tie_embeddings else width * config.vocab_size,
        idle_experts=sparse * idle,
    )


def attention_parameters(config: ModelConfig) -> int:
    """Weights of one layer's four attention projections."""
    return 2 * config.model_dim * config.head_width * (config.num_heads + config.kv_heads)


@dataclasses.dataclass(frozen=True)
class NetworkCount:
    """Parameters of one feed-forward network: its `matrices`, and its `vectors`, biases and scales."""

    matrices: int
    vectors: int

    @property
    def total(self) -> int:
        return self.matrices + self.vectors


def count_network(kind: str, model_dim: int, hidden: int) -> NetworkCount:
    """Counts one network of width `hidden`, a dense layer's or an expert's, of a kind in FFN_KINDS."""
    sizes = FFN_KINDS[kind].shapes(model_dim, hidden).items()
    vectors = sum(math.prod(shape) for name, shape in sizes if name.endswith(("_bias", "_scale")))
    return NetworkCount(sum(math.prod(shape) for _, shape in sizes) - vectors, vectors)


def count_dense(config: ModelConfig) -> NetworkCount:
    """Of a dense layer's network."""
    return count_network(config.ffn, config.model_dim, config.ffn_dim)


def count_expert(config: ModelConfig) -> NetworkCount:
    """Of one expert."""
    return count_network(config.expert_ffn, config.model_dim, config.expert_dim)


def count_shared(config: ModelConfig) -> NetworkCount:
    """Of what every token runs in one sparse layer beside its experts and the router."""
    moe = config.moe
    if moe.shared_dim is None:
        return NetworkCount(0, 0)
    network = count_network(config.expert_ffn, config.model_dim, moe.shared_dim)
    gate = config.model_dim if moe.shared_gate else 0
    return NetworkCount(network.matrices + gate, network.vectors)


def _sparse_layer(config: ModelConfig) -> tuple[int, int, int, int]:
    """Of one sparse layer: parameters of router, all experts, experts that a token leaves unused, what all share."""
    moe = config.moe
    expert, shared = count_expert(config).total, count_shared(config).total
    router = sum(moe.checked_router().weights(moe.group_size or 0, config.model_dim))
    return router, moe.num_experts * expert, (moe.num_experts - moe.k) * expert, shared
