"""The shape of a decoder. A dense model is the sparse model with `moe_layers=()`."""

import dataclasses
import math
from typing import Any, Literal

from moe_jax.configuration import ConfigError, require, require_name
from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.run import EXECUTIONS
from moe_jax.routing import ROUTERS, check_router


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
      execution: how experts are run, a name in `moe_jax.experts.run.EXECUTIONS`.
      balance_coefficient: weight of the load-balance loss, averaged over layers (Switch: 0.01).
      z_coefficient: weight of the router z-loss, averaged over layers (ST-MoE: 0.001).
      router_options: further fields of the router's module, by name.
      allow_noncausal_router: run a router that lets a token see later ones (expert choice) in a causal model.
    """

    num_experts: int
    router: str = "switch"
    k: int = 1
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    group_size: int | None = None
    expert_dim: int | None = None
    execution: str = "padded"
    balance_coefficient: float = 0.01
    z_coefficient: float = 0.0
    router_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    allow_noncausal_router: bool = False

    def __post_init__(self) -> None:
        where = "model.moe."
        require(self.num_experts >= 1, where + "num_experts", self.num_experts, "an integer of at least 1")
        require_name(self.router, ROUTERS, where + "router")
        require_name(self.execution, EXECUTIONS, where + "execution")
        require(1 <= self.k <= self.num_experts, where + "k", self.k, f"1 to num_experts ({self.num_experts})")
        for name in ("capacity_factor", "eval_capacity_factor"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, where + name, value, "a positive number, finite, or None")
        for name in ("group_size", "expert_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, where + name, value, "an integer of at least 1, or None")
        for name in ("balance_coefficient", "z_coefficient"):
            value = getattr(self, name)
            require(value >= 0, where + name, value, "a number of at least 0")
        coefficients = {"balance_loss": self.balance_coefficient, "z_loss": self.z_coefficient}
        check_router(self.router, self.k, self.router_options, coefficients, "model.moe")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder.

    Attributes:
      vocab_size: V.
      num_layers: blocks of attention and feed-forward.
      model_dim: D.
      num_heads: H, query heads.
      num_kv_heads: key and value heads (grouped-query attention); None takes `num_heads`.
      head_dim: width of one head; None takes model_dim / num_heads.
      ffn_dim: F of the dense feed-forward layers, and of an expert unless `moe.expert_dim` says otherwise.
      ffn: a name in `moe_jax.experts.ffn.FFN_KINDS`.
      positions: `rope` (rotary) or `t5` (relative bias, one table shared by all layers).
      rope_theta: base of the rotary frequencies.
      tie_embeddings: the output projection is the embedding's transpose.
      moe_layers: indices of the layers whose feed-forward is a mixture of experts; () is the dense model.
      moe: the mixture; must be there when `moe_layers` is not empty.
      init_scale: s in Var = s / fan_in of the truncated-normal initialisation of every kernel but the embedding's
        and the router's (Switch Transformer recommends 0.1).
      dtype: compute type of all but the router, which is float32. Parameters are float32.
      scan_layers: compile one period of the layer pattern and scan over its repeats.
      remat: recompute each block in the backward pass; routing decisions are saved, never recomputed.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn: str = "relu"
    positions: Literal["rope", "t5"] = "rope"
    rope_theta: float = 10000.0
    tie_embeddings: bool = False
    moe_layers: tuple[int, ...] = ()
    moe: MoEConfig | None = None
    init_scale: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "ffn_dim"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "an integer of at least 1")
        for name in ("num_kv_heads", "head_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}", value, "an integer of at least 1, or None")
        require_name(self.ffn, FFN_KINDS, "model.ffn")
        if self.head_dim is None:
            require(
                self.model_dim % self.num_heads == 0,
                "model.num_heads",
                self.num_heads,
                f"a divisor of model_dim ({self.model_dim}), or set head_dim",
            )
        require(
            self.num_heads % self.kv_heads == 0, "model.num_kv_heads", self.kv_heads, f"a divisor of {self.num_heads}"
        )
        if self.positions == "rope":
            require(self.head_width % 2 == 0, "model.head_dim", self.head_width, "an even number, with rope")
        require(self.rope_theta > 0, "model.rope_theta", self.rope_theta, "a positive number")
        require(self.init_scale > 0, "model.init_scale", self.init_scale, "a positive number")
        require(
            list(self.moe_layers) == sorted(set(self.moe_layers))
            and all(0 <= layer < self.num_layers for layer in self.moe_layers),
            "model.moe_layers",
            self.moe_layers,
            f"increasing layer indices below num_layers ({self.num_layers})",
        )
        if self.moe_layers:
            require(self.moe is not None, "model.moe", None, "a mixture's fields, because moe_layers is not empty")
            self._check_causal()

    def _check_causal(self) -> None:
        if not ROUTERS[self.moe.router].causal and not self.moe.allow_noncausal_router:
            raise ConfigError(
                f"model.moe.router is {self.moe.router!r}, with which a token's experts depend on later tokens, so a "
                "causal model would see the future it is to predict; accepted: another router, or "
                "model.moe.allow_noncausal_router=True to run it knowingly"
            )

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.model_dim // self.num_heads

    @property
    def expert_dim(self) -> int:
        """F of one expert."""
        return self.moe.expert_dim or self.ffn_dim

    @property
    def period(self) -> int:
        """Layers in the shortest pattern of dense and sparse layers whose repeats make the model."""
        sparse = [layer in self.moe_layers for layer in range(self.num_layers)]
        return next(
            p
            for p in range(1, self.num_layers + 1)
            if self.num_layers % p == 0 and all(sparse[i] == sparse[i % p] for i in range(self.num_layers))
        )
