"""How many parameters a model has and how many of them one token uses, from its configuration alone.

V vocabulary, D model width, H heads, F width of a feed-forward network, E experts.
"""

import dataclasses
import math

from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.models.config import ModelConfig
from moe_jax.runtime.parameters import count

RELATIVE_BUCKETS = 32
"""Rows of the relative position table with `positions="t5"`."""


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model by component, over all layers of its stacks.

    Attributes:
      embedding: token embedding [V, D].
      attention: query, key, value and output projections, without biases, to a token's own text and to the encoder's,
        of what is no mixture.
      positions: the relative position tables [32, H], one a stack, shared by its layers; 0 with rotary positions.
      norms: scales [D], one for each part of a layer and one at the end of a stack.
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
    """Counts the parameters of a model of `config`; optimizer state and router state are none."""
    width, stacks = config.model_dim, len(config.stacks)
    cross = (stacks - 1) * config.num_layers
    networks = stacks * sum(config.sparse(i, "feed_forward") for i in range(config.num_layers))
    attentions = stacks * sum(config.sparse(i, "attention") for i in range(config.num_layers))
    feed_forward = _feed_forward(config) if networks else MixtureCount()
    projections = _projections(config) if attentions else MixtureCount()
    mixed = attentions * (attention_parameters(config) - output_parameters(config))
    return ParameterCount(
        embedding=config.vocab_size * width,
        attention=(stacks * config.num_layers + cross) * attention_parameters(config) - mixed,
        positions=stacks * RELATIVE_BUCKETS * config.num_heads if config.positions == "t5" else 0,
        norms=(stacks * (2 * config.num_layers + 1) + cross) * width,
        ffn=(stacks * config.num_layers - networks) * count_dense(config).total,
        experts=networks * feed_forward.experts + attentions * projections.experts,
        shared=networks * feed_forward.shared,
        router=networks * feed_forward.router + attentions * projections.router + len(config.depth_layers) * width,
        output=0 if config.tie_embeddings else width * config.vocab_size,
        idle_experts=networks * feed_forward.idle + attentions * projections.idle,
    )


def attention_parameters(config: ModelConfig) -> int:
    """Weights of one layer's four attention projections."""
    return 2 * config.model_dim * config.head_width * (config.num_heads + config.kv_heads)


def output_parameters(config: ModelConfig) -> int:
    """Weights of the last of them."""
    return config.model_dim * config.head_width * config.num_heads


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


@dataclasses.dataclass(frozen=True)
class MixtureCount:
    """Parameters of what is sparse in one layer.

    Attributes:
      router: of its routers.
      experts: of all experts.
      idle: of those of them that a token leaves unused.
      shared: of what all tokens run besides.
    """

    router: int = 0
    experts: int = 0
    idle: int = 0
    shared: int = 0


def router_parameters(config: ModelConfig) -> int:
    """Of one router."""
    return count(config.moe.router_parameters(config.model_dim))


def _feed_forward(config: ModelConfig) -> MixtureCount:
    """Of a sparse layer's feed-forward."""
    moe, expert = config.moe, count_expert(config).total
    return MixtureCount(
        router=router_parameters(config),
        experts=moe.num_experts * expert,
        idle=(moe.num_experts - moe.k) * expert,
        shared=count_shared(config).total,
    )


def _projections(config: ModelConfig) -> MixtureCount:
    """Of its attention, whose mixtures are two: to queries, and to keys and values."""
    moe, expert = config.moe, attention_parameters(config) - output_parameters(config)
    return MixtureCount(
        router=2 * router_parameters(config),
        experts=moe.num_experts * expert,
        idle=(moe.num_experts - moe.k) * expert,
    )
