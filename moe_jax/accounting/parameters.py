"""Parameter counts of a model, and how many of them one token uses, from its configuration alone.

V vocabulary, D model width, H heads, E experts.
"""

import dataclasses
from collections import Counter

from moe_jax.layers.moe import MoEConfig
from moe_jax.models.config import ModelConfig
from moe_jax.models.layer_spec import ATTENTION, CROSS_ATTENTION, DEPTH, FEED_FORWARD, LayerSpec
from moe_jax.models.stack import relative_tables
from moe_jax.runtime.parameters import count

# Components of the parts of a layer that are no mixtures.
COMPONENTS = {
    ATTENTION: "attention",
    CROSS_ATTENTION: "attention",
    FEED_FORWARD: "ffn",
    DEPTH: "router",
    **{f"{part}_norm": "norms" for part in (ATTENTION, CROSS_ATTENTION, FEED_FORWARD)},
}


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model by component, over all layers of its stacks.

    Attributes:
      embedding: token embedding [V, D].
      attention: projections of attention, to a token's own text and to the encoder's, without those that are mixtures.
      positions: tables of relative positions [buckets, H], which the layers of a stack share; 0 with rotary positions.
      norms: scales and biases [D], one norm for each part of a layer and one at the end of a stack.
      ffn: feed-forward networks of the dense layers.
      experts: all experts of the sparse layers.
      shared: networks of the sparse layers that every token runs, with their gates.
      router: routers of the sparse layers, and of layers that only some tokens run.
      output: projection [D, V]; 0 when it is the embedding's transpose.
      idle_experts: part of `experts` that a token leaves unused when it asks for k experts in each mixture.
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

    @property
    def network(self) -> int:
        """Active parameters without embedding, output projection and routers: a sparse model has its dense twin's."""
        return self.active - self.embedding - self.output - self.router


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts the parameters of a model of `config`; optimizer state and router state are not parameters."""
    width, stacks = config.model_dim, len(config.stacks)
    tables = sum(count(positions.parameters(heads)) for positions, heads in relative_tables(config).values())
    total = Counter(
        embedding=config.vocab_size * width,
        positions=stacks * tables,
        norms=stacks * count(config.norm.parameters(width)),
        output=0 if config.tie_embeddings else width * config.vocab_size,
    )
    for cross in range(stacks):
        for spec in config.layers:
            total.update(count_layer(spec, width, bool(cross)))
    return ParameterCount(**{field.name: total[field.name] for field in dataclasses.fields(ParameterCount)})


def count_layer(spec: LayerSpec, model_dim: int, cross: bool) -> Counter[str]:
    """Counts the parameters of one layer by component of `ParameterCount`; with `cross` it attends to an encoder."""
    total: Counter[str] = Counter()
    for part, parameters in spec.parameters(model_dim, cross).items():
        if part in spec.mixtures:
            total.update(count_mixture(spec.mixtures[part], model_dim))
        else:
            total[COMPONENTS[part]] += count(parameters)
    return total


def count_mixture(moe: MoEConfig, model_dim: int) -> Counter[str]:
    """Counts the parameters of one mixture: its router, all experts, the idle ones of these, and what tokens share."""
    total: Counter[str] = Counter()
    for path, parameter in moe.parameters(model_dim).items():
        name = path.split("/")[0]
        component = "experts" if name.startswith("experts_") else "router" if name == "router" else "shared"
        total[component] += parameter.size
    total["idle_experts"] = total["experts"] * (moe.num_experts - moe.k) // moe.num_experts
    return total
