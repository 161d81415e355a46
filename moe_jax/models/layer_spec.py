"""Layer specification: everything that a block needs to know of its place in a model."""

import dataclasses
from collections.abc import Sequence

from moe_jax.configuration import lists_to_tuples, require
from moe_jax.layers.attention import AnyAttention
from moe_jax.layers.depth import DepthConfig
from moe_jax.layers.feed_forward import Network
from moe_jax.layers.moe import MoEConfig
from moe_jax.layers.norms import AnyNorm
from moe_jax.runtime.parameters import Parameter

# Names of the parts of a layer, as in the tree of parameters; each but MOE has a norm of its name.
ATTENTION, CROSS_ATTENTION, FEED_FORWARD = "attention", "cross_attention", "feed_forward"
MOE, DEPTH = "moe", "depth"


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer: attention, then a feed-forward part, each on a normed copy added to the residual stream.

    Attributes:
      attention: its kind, with the width of a head.
      feed_forward: a dense network, or a mixture with the width and kind of its experts.
      norm: the kind of norm before each part.
      depth: which tokens run the layer; None runs all.
      projections: mixture in place of the attention's projections to queries, keys and values; None has plain ones.
    """

    attention: AnyAttention
    feed_forward: Network | MoEConfig
    norm: AnyNorm
    depth: DepthConfig | None = None
    projections: MoEConfig | None = None

    @classmethod
    def of(
        cls,
        attention: AnyAttention,
        mixture: MoEConfig | None,
        network: Network,
        norm: AnyNorm,
        depth: DepthConfig | None,
    ) -> "LayerSpec":
        """Makes a layer with a mixture in the places that it names, and else the network and plain projections."""
        places = mixture.places if mixture else ()
        feed_forward = mixture if "feed_forward" in places else network
        return cls(attention, feed_forward, norm, depth, mixture if "attention" in places else None)

    @property
    def mixtures(self) -> dict[str, MoEConfig]:
        """The mixtures of the layer, by name."""
        sparse = {MOE: self.feed_forward} if isinstance(self.feed_forward, MoEConfig) else {}
        if self.projections is None:
            return sparse
        widths = self.attention.mixture_widths.items()
        return sparse | {name: self.projections.projection(width) for name, width in widths}

    def parameters(self, model_dim: int, cross: bool) -> dict[str, dict[str, Parameter]]:
        """Declares the parameters of each part.

        Args:
          model_dim: D.
          cross: whether the layer also attends to an encoder.
        """
        norm, mixtures = self.norm.parameters(model_dim), self.mixtures
        plain = {} if MOE in mixtures else {FEED_FORWARD: self.feed_forward.parameters(model_dim)}
        parts = {
            f"{ATTENTION}_norm": norm,
            ATTENTION: self.attention.parameters(model_dim, projects=self.projections is None),
            f"{FEED_FORWARD}_norm": norm,
            **plain,
            **{name: moe.parameters(model_dim) for name, moe in mixtures.items()},
        }
        if cross:
            parts |= {
                f"{CROSS_ATTENTION}_norm": norm,
                CROSS_ATTENTION: self.attention.as_cross_attention().parameters(model_dim),
            }
        return parts if self.depth is None else parts | {DEPTH: self.depth.parameters(model_dim)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Layers that differ from the model's others; None in a field takes the model's.

    Attributes:
      layers: their indices.
      attention: kind of attention.
      moe: the mixture, where the layer is one of the model's `moe_layers`.
      ffn_dim: F of the dense network, and of an expert unless the mixture says otherwise.
    """

    layers: tuple[int, ...]
    attention: AnyAttention | None = None
    moe: MoEConfig | None = None
    ffn_dim: int | None = None

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        require(bool(self.layers), "layers", self.layers, "indices of layers, at least one")
        differs = (self.attention, self.moe, self.ffn_dim) != (None, None, None)
        require(differs, "layers", self.layers, "layers with an attention, a moe or an ffn_dim of their own")
        require(self.ffn_dim is None or self.ffn_dim >= 1, "ffn_dim", self.ffn_dim, "an integer of at least 1, or None")

    def require_sparse(self, moe_layers: tuple[int, ...]) -> None:
        """Raises ConfigError where the variant has a mixture and one of its layers has none."""
        accepted = f"layers in moe_layers {moe_layers}, because the variant has a mixture"
        require(self.moe is None or set(self.layers) <= set(moe_layers), "layers", self.layers, accepted)


def require_layers(name: str, layers: tuple[int, ...], num_layers: int) -> None:
    """Raises ConfigError unless the field `name` has increasing indices of layers."""
    increasing = list(layers) == sorted(set(layers)) and all(0 <= i < num_layers for i in layers)
    require(increasing, name, layers, f"increasing layer indices below num_layers ({num_layers})")


def mixture_fields(layers: Sequence[LayerSpec], variants: Sequence[Variant]) -> dict[MoEConfig, str]:
    """Returns the different mixtures of layers, in their order, each with the field of its first layer."""
    fields: dict[MoEConfig, str] = {}
    for index, layer in enumerate(layers):
        named = [f"variants[{i}].moe" for i, variant in enumerate(variants) if variant.moe and index in variant.layers]
        for moe in layer.mixtures.values():
            fields.setdefault(moe, ["moe", *named][-1])
    return fields
