"""Model configuration: what a person writes. A dense model is the sparse model with `moe_layers=()`."""

import dataclasses
import functools
from typing import Literal

from moe_jax.configuration import errors_within, lists_to_tuples, require, require_name
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.layers.attention import AnyAttention
from moe_jax.layers.depth import DepthConfig
from moe_jax.layers.feed_forward import Network
from moe_jax.layers.moe import Dtype, MoEConfig
from moe_jax.layers.norms import RMS, AnyNorm
from moe_jax.models.layer_spec import LayerSpec, Variant, mixture_fields, require_layers
from moe_jax.models.segments import Segment, find_segments
from moe_jax.runtime.remat import SAVEABLE

Architecture = Literal["decoder", "encoder_decoder"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder, or with `causal=False` an encoder, or an encoder and a decoder (T5).

    Code reads the resolved `layer(i)` of each place, and the `segments` that these make.

    Attributes:
      vocab_size: V.
      num_layers: blocks of attention and feed-forward in each stack.
      model_dim: D.
      ffn_dim: F of the dense feed-forward layers, and of an expert unless `moe.expert_dim` says otherwise.
      attention: kind of attention, see `moe_jax.layers.attention`.
      ffn: unit of the feed-forward layers, a name in `moe_jax.experts.ffn.FFN_KINDS`.
      norm: kind of norm, see `moe_jax.layers.norms`.
      architecture: `decoder`, or `encoder_decoder` with the same layers in both stacks.
      causal: whether a decoder's token sees no later one; without, it sees all of its document.
      tie_embeddings: whether the output projection is the embedding's transpose.
      moe_layers: indices of the layers that have a mixture of experts; () is the dense model.
      moe: the mixture; required when `moe_layers` is not empty.
      variants: layers that differ; where two name a layer, the later one wins.
      depth: layers that only some tokens run; None has none.
      init_scale: variance of all matrices but embeddings and routers, times fan-in (Switch Transformer recommends 0.1).
      dropout: share of values that training sets to 0, in the places where T5 has dropout.
      dtype: compute type of all but the router, which is float32. Parameters are float32.
      scan_layers: compile the pattern of each segment once and scan over its repeats.
      loss_chunk: positions of a sequence whose logits exist at once; None takes all, which is faster where they fit.
      remat: recompute each block in the backward pass; routing decisions are saved, never recomputed.
      remat_saves: other values that are saved, names in `moe_jax.runtime.remat.SAVEABLE`.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    ffn_dim: int
    attention: AnyAttention
    ffn: str = "relu"
    norm: AnyNorm = RMS()
    architecture: Architecture = "decoder"
    causal: bool = True
    tie_embeddings: bool = False
    moe_layers: tuple[int, ...] = ()
    moe: MoEConfig | None = None
    variants: tuple[Variant, ...] = ()
    depth: DepthConfig | None = None
    init_scale: float = 1.0
    dropout: float = 0.0
    dtype: Dtype = "float32"
    scan_layers: bool = False
    loss_chunk: int | None = None
    remat: bool = False
    remat_saves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        for name in ("vocab_size", "num_layers", "model_dim", "ffn_dim"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        chunk = self.loss_chunk
        require(chunk is None or chunk >= 1, "loss_chunk", chunk, "an integer of at least 1, or None")
        require_name(self.ffn, FFN_KINDS, "ffn")
        if self.moe is not None and self.moe.ffn is not None:
            require_name(self.moe.ffn, FFN_KINDS, "moe.ffn")
        require(self.init_scale > 0, "init_scale", self.init_scale, "a positive number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1")
        for name in self.remat_saves:
            require_name(name, SAVEABLE, "remat_saves")
        require(self.remat or not self.remat_saves, "remat_saves", self.remat_saves, "(), without remat")
        self._check_layers()
        if self.architecture == "encoder_decoder":
            accepted = "True, with architecture='encoder_decoder', whose encoder sees both sides all the same"
            require(self.causal, "causal", self.causal, accepted)
            require(self.depth is None, "depth", self.depth, "None, with architecture='encoder_decoder'")

    def _check_layers(self) -> None:
        places = {"moe_layers": self.moe_layers, "depth.layers": self.depth.layers if self.depth else ()}
        places |= {f"variants[{i}].layers": variant.layers for i, variant in enumerate(self.variants)}
        for name, layers in places.items():
            require_layers(name, layers, self.num_layers)
        dense = set(places["depth.layers"]).isdisjoint(self.moe_layers)
        accepted = f"layers that are not in moe_layers {self.moe_layers}"
        require(dense, "depth.layers", places["depth.layers"], accepted)
        for i, variant in enumerate(self.variants):
            with errors_within(f"variants[{i}]"):
                variant.require_sparse(self.moe_layers)
        accepted = "a mixture's fields, because moe_layers is not empty"
        require(self.moe is not None or not self.moe_layers, "moe", None, accepted)
        every = self.moe.parallel.rebalance_every if self.moe and not self.moe_layers else None
        require(every is None, "moe.parallel.rebalance_every", every, "None, without moe_layers")
        for mixture, field in self.mixtures.items() if self.causal else ():
            with errors_within(field):
                mixture.require_causal()

    def layer(self, index: int) -> LayerSpec:
        """Returns the layer at `index` of each stack."""
        return self.layers[index]

    @functools.cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers of each stack."""
        return tuple(self._resolve(index) for index in range(self.num_layers))

    def _resolve(self, index: int) -> LayerSpec:
        attention, moe, ffn_dim = self.attention, self.moe, self.ffn_dim
        for variant in self.variants:
            if index in variant.layers:
                attention, moe = variant.attention or attention, variant.moe or moe
                ffn_dim = variant.ffn_dim or ffn_dim
        with errors_within("attention"):
            attention = attention.resolve(self.model_dim)
        mixture = moe.resolve(ffn_dim, self.ffn, self.dropout) if index in self.moe_layers else None
        depth = self.depth if self.depth and index in self.depth.layers else None
        return LayerSpec.of(attention, mixture, Network(ffn_dim, self.ffn), self.norm, depth)

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The layers of each stack as runs of a repeating pattern."""
        return find_segments(self.layers)

    @functools.cached_property
    def mixtures(self) -> dict[MoEConfig, str]:
        """The different mixtures of the model's layers, in their order, each with the field that configures it."""
        return mixture_fields(self.layers, self.variants)

    @property
    def stacks(self) -> tuple["ModelConfig", ...]:
        """The encoder's shape and the decoder's, or that of the one stack there is."""
        if self.architecture == "decoder":
            return (self,)
        decoder = dataclasses.replace(self, architecture="decoder")
        return dataclasses.replace(decoder, causal=False), decoder
