"""The shape of a model. A dense model is the sparse model with `moe_layers=()`."""

import dataclasses
import math
from typing import Any, Literal, get_args

from moe_jax.configuration import ConfigError, require, require_name
from moe_jax.experts.combine import Combine
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.routing import ROUTERS, Router, check_router
from moe_jax.routing.capacity import CapacityRule
from moe_jax.routing.losses import LossLevel
from moe_jax.runtime.remat import SAVEABLE

Place = Literal["feed_forward", "attention"]
Architecture = Literal["decoder", "encoder_decoder"]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """A mixture-of-experts layer: who is asked, how many, and how they are run.

    Attributes:
      num_experts: E.
      router: a name in `moe_jax.routing.ROUTERS`.
      k: experts per token (on average, for expert choice).
      capacity_factor: C = ceil(capacity_factor * S * k / E) seats per expert in a group; None drops nothing.
      eval_capacity_factor: the same in evaluation; None takes `capacity_factor`.
      group_size: S, tokens that share one capacity; None makes each sequence a group. Independent of the devices.
      expert_dim: F of one expert; None takes the model's `ffn_dim`.
      ffn: what an expert computes, a name in `moe_jax.experts.ffn.FFN_KINDS`; None takes the model's `ffn`.
      execution: how experts are run, a name in `moe_jax.experts.executions.EXECUTIONS`; `auto` takes the fastest.
      kernel: of grouped matrix products (execution `dropless`), a name in `moe_jax.experts.kernels.choice.KERNELS`;
        `auto` takes the fastest.
      losses: coefficients of the router's losses by name, each a mean over layers; what is left out has the
        coefficient of the router's paper (`Router.losses`), as have all with None.
      loss_level: what a loss is a mean over, `group`, `sequence` or `batch`; None takes the router's own.
      capacity_rule: how a capacity factor becomes seats; see `moe_jax.routing.capacity.capacity_per_expert`.
      combine: weights on the experts' `output`, on their `input` (Llama 4), or as a `mix` with the token (BASE).
      shared_dim: width of a network that every token runs besides its experts (DeepSeekMoE); None has none.
      shared_gate: whether a token weighs that network by a learned gate (Qwen2-MoE).
      router_options: further fields of the router's module, by name.
      parallel: how tokens reach experts on other devices.
      allow_noncausal_router: run a router that lets a token see later ones (expert choice) in a causal model.
      places: what of a sparse layer is a mixture: its `feed_forward`, or the `attention`'s projections to queries, keys
        and values (Switch Transformer, appendix A), or both.
      dropout: share of the experts' hidden values that training sets to 0 (expert dropout: Switch Transformer, section
        4.2); None takes the model's `dropout`.
      router_dtype: what the router's logits and weights are rounded to, float32 but to see what bfloat16 does (Switch
        Transformer, table 2).
    """

    num_experts: int
    router: str = "switch"
    k: int = 1
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    group_size: int | None = None
    expert_dim: int | None = None
    ffn: str | None = None
    execution: str = "auto"
    kernel: KernelChoice = "auto"
    losses: dict[str, Any] | None = None
    loss_level: LossLevel | None = None
    capacity_rule: CapacityRule = "ceil"
    combine: Combine = "output"
    shared_dim: int | None = None
    shared_gate: bool = False
    router_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    allow_noncausal_router: bool = False
    places: tuple[Place, ...] = ("feed_forward",)
    dropout: float | None = None
    router_dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        accepted = f"one or both of {', '.join(get_args(Place))}"
        require(len(set(self.places)) == len(self.places) >= 1, "places", self.places, accepted)
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1, or None")
        require(self.num_experts >= 1, "num_experts", self.num_experts, "an integer of at least 1")
        require_name(self.router, ROUTERS, "router")
        require_name(self.execution, ["auto", *EXECUTIONS], "execution")
        if self.ffn is not None:
            require_name(self.ffn, FFN_KINDS, "ffn")
        require(1 <= self.k <= self.num_experts, "k", self.k, f"1 to num_experts ({self.num_experts})")
        for name in ("capacity_factor", "eval_capacity_factor"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a positive number, finite, or None")
        for name in ("group_size", "expert_dim", "shared_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "an integer of at least 1, or None")
        require(
            self.shared_dim is not None or not self.shared_gate,
            "shared_gate",
            True,
            "False, without shared_dim",
        )
        self._check_combinations()
        # Raises where the router does not have what it is asked for.
        self.checked_router()

    def _check_combinations(self) -> None:
        rule = self.capacity_rule
        require(
            self.capacity_factor is not None or rule == "ceil",
            "capacity_rule",
            rule,
            "ceil, with capacity_factor=None",
        )
        if ROUTERS[self.router].mixes:
            accepted = f"an integer, with router {self.router!r}: the number of its parameters depends on it"
            require(self.group_size is not None, "group_size", None, accepted)
            accepted = f"output, with router {self.router!r}, which assigns no token to an expert"
            require(self.combine == "output", "combine", self.combine, accepted)
        if "attention" in self.places:
            accepted = "output, with a mixture in the attention, whose experts' results are no tokens"
            require(self.combine == "output", "combine", self.combine, accepted)

    def checked_router(self) -> Router:
        """The router as configured, with its training capacity."""
        fields = {} if self.loss_level is None else {"loss_level": self.loss_level}
        return check_router(
            self.router,
            self.num_experts,
            self.k,
            self.capacity_factor,
            self.router_options,
            self.losses or {},
            "",
            "router_options",
            capacity_rule=self.capacity_rule,
            **fields,
        )

    @property
    def rows_per_token(self) -> float:
        """How often a token is sent to an expert in training, with the seats that stay empty."""
        return self.k * (1.0 if self.capacity_factor is None else self.capacity_factor)

    @property
    def coefficients(self) -> dict[str, float]:
        """The coefficient of each of the router's losses."""
        return dict(ROUTERS[self.router].losses) | (self.losses or {})


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """Mixture-of-Depths: layers that only some tokens run; see `moe_jax.models.depth.DepthBlock`.

    Attributes:
      layers: which; dense ones.
      capacity: share of a sequence's tokens that run them in training.
      coefficient: of the loss by which the router learns to decide without a look at later tokens.
    """

    layers: tuple[int, ...]
    capacity: float = 0.125
    coefficient: float = 0.01

    def __post_init__(self) -> None:
        require(0 < self.capacity <= 1, "capacity", self.capacity, "above 0, to 1")
        require(self.coefficient >= 0, "coefficient", self.coefficient, "a number of at least 0")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder, or with `causal=False` an encoder, or an encoder and a decoder that sees it (T5).

    Attributes:
      vocab_size: V.
      num_layers: blocks of attention and feed-forward, in the encoder and in the decoder if there are both.
      model_dim: D.
      num_heads: H, query heads.
      num_kv_heads: key and value heads (grouped-query attention); None takes `num_heads`.
      head_dim: width of one head; None takes model_dim / num_heads.
      ffn_dim: F of the dense feed-forward layers, and of an expert unless `moe.expert_dim` says otherwise.
      ffn: what a feed-forward layer computes, a name in `moe_jax.experts.ffn.FFN_KINDS`.
      architecture: `decoder`, or `encoder_decoder`, whose two stacks have the same layers, sparse ones at the same
        places, and whose decoder's also attend to the encoder.
      causal: whether each token (of the decoder) sees itself and earlier ones only; without, all of its document.
      positions: `rope` (rotary) or `t5` (relative bias, one table shared by all layers of a stack).
      rope_theta: base of the rotary frequencies.
      relative_bias_std: standard deviation of the t5 bias's start, which is model_dim**-0.5 in T5.
      tie_embeddings: the output projection is the embedding's transpose.
      moe_layers: indices of the layers whose feed-forward is a mixture of experts; () is the dense model.
      moe: the mixture; must be there when `moe_layers` is not empty.
      depth: layers that only some tokens run; None has none.
      init_scale: s in Var = s / fan_in of the truncated-normal initialisation of every kernel but the embedding's
        and the router's (Switch Transformer recommends 0.1).
      dropout: share of values that training sets to 0, as in T5: of embedded tokens, of attention weights, of hidden
        values of feed-forward layers, of what each sublayer adds, and of a stack's last values.
      dtype: compute type of all but the router, which is float32. Parameters are float32.
      scan_layers: compile one period of the layer pattern and scan over its repeats.
      loss_chunk: positions of a sequence whose logits over the vocabulary are there at once in training and evaluation;
        None takes all, which is faster where they fit.
      remat: recompute each block in the backward pass; routing decisions are saved, never recomputed.
      remat_saves: what is saved besides, names in `moe_jax.runtime.remat.SAVEABLE`.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn: str = "relu"
    architecture: Architecture = "decoder"
    causal: bool = True
    positions: Literal["rope", "t5"] = "rope"
    rope_theta: float = 10000.0
    relative_bias_std: float = 0.02
    tie_embeddings: bool = False
    moe_layers: tuple[int, ...] = ()
    moe: MoEConfig | None = None
    depth: DepthConfig | None = None
    init_scale: float = 1.0
    dropout: float = 0.0
    dtype: Dtype = "float32"
    scan_layers: bool = False
    loss_chunk: int | None = None
    remat: bool = False
    remat_saves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "ffn_dim"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        for name in ("num_kv_heads", "head_dim", "loss_chunk"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "an integer of at least 1, or None")
        require_name(self.ffn, FFN_KINDS, "ffn")
        if self.head_dim is None:
            require(
                self.model_dim % self.num_heads == 0,
                "num_heads",
                self.num_heads,
                f"a divisor of model_dim ({self.model_dim}), or set head_dim",
            )
        require(self.num_heads % self.kv_heads == 0, "num_kv_heads", self.kv_heads, f"a divisor of {self.num_heads}")
        if self.positions == "rope":
            require(self.head_width % 2 == 0, "head_dim", self.head_width, "an even number, with rope")
        std, field = self.relative_bias_std, "relative_bias_std"
        require(std > 0, field, std, "a positive number")
        default = ModelConfig.relative_bias_std
        require(std == default or self.positions == "t5", field, std, f"{default}, with positions={self.positions!r}")
        require(self.rope_theta > 0, "rope_theta", self.rope_theta, "a positive number")
        require(self.init_scale > 0, "init_scale", self.init_scale, "a positive number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1")
        self._check_stacks()
        for name, layers in (("moe_layers", self.moe_layers), ("depth.layers", self.depth_layers)):
            increasing = list(layers) == sorted(set(layers)) and all(0 <= i < self.num_layers for i in layers)
            accepted = f"increasing layer indices below num_layers ({self.num_layers})"
            require(increasing, name, layers, accepted)
        both = set(self.depth_layers) & set(self.moe_layers)
        require(not both, "depth.layers", self.depth_layers, f"layers that are not in moe_layers {self.moe_layers}")
        for name in self.remat_saves:
            require_name(name, SAVEABLE, "remat_saves")
        require(self.remat or not self.remat_saves, "remat_saves", self.remat_saves, "(), without remat")
        if self.moe_layers:
            require(self.moe is not None, "moe", None, "a mixture's fields, because moe_layers is not empty")
            self._check_causal()
        every = self.moe.parallel.rebalance_every if self.moe else None
        require(
            every is None or bool(self.moe_layers),
            "moe.parallel.rebalance_every",
            every,
            "None, without moe_layers",
        )

    def _check_stacks(self) -> None:
        if self.architecture == "decoder":
            return
        accepted = "True, with architecture='encoder_decoder', whose encoder sees both sides all the same"
        require(self.causal, "causal", self.causal, accepted)
        require(self.depth is None, "depth", self.depth, "None, with architecture='encoder_decoder'")

    def _check_causal(self) -> None:
        allowed = self.moe.allow_noncausal_router or not self.causal
        if not self.moe.checked_router().causal and not allowed:
            raise ConfigError(
                f"moe.router is {self.moe.router!r}, with which a token's experts depend on later tokens, so a "
                "causal model would see the future it is to predict; accepted: another router, or "
                "allow_noncausal_router=True to run it knowingly"
            )

    @property
    def stacks(self) -> tuple["ModelConfig", ...]:
        """The encoder's shape and the decoder's, or that of the one stack there is."""
        if self.architecture == "decoder":
            return (self,)
        decoder = dataclasses.replace(self, architecture="decoder")
        moe = self.moe and dataclasses.replace(self.moe, allow_noncausal_router=True)
        return dataclasses.replace(decoder, causal=False, moe=moe), decoder

    @property
    def expert_dropout(self) -> float:
        """Share of the experts' hidden values that training sets to 0."""
        return self.dropout if self.moe is None or self.moe.dropout is None else self.moe.dropout

    def sparse(self, layer: int, place: Place) -> bool:
        """Whether this part of a layer is a mixture of experts."""
        return layer in self.moe_layers and place in self.moe.places

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.model_dim // self.num_heads

    @property
    def depth_layers(self) -> tuple[int, ...]:
        """The layers that only some tokens run."""
        return self.depth.layers if self.depth else ()

    @property
    def expert_dim(self) -> int:
        """F of one expert."""
        return self.moe.expert_dim or self.ffn_dim

    @property
    def expert_ffn(self) -> str:
        """What one expert computes."""
        return self.moe.ffn or self.ffn

    @property
    def period(self) -> int:
        """Layers in the shortest pattern of kinds of layers whose repeats make the model."""
        kinds = [(layer in self.moe_layers, layer in self.depth_layers) for layer in range(self.num_layers)]
        return next(
            p
            for p in range(1, self.num_layers + 1)
            if self.num_layers % p == 0 and all(kinds[i] == kinds[i % p] for i in range(self.num_layers))
        )
