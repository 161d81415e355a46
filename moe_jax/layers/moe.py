"""The mixture-of-experts layer and its configuration: joins a router and a way of running experts.

B batch, S sequence, D model width, E experts, F expert width, O output width (F of linear experts, else D). In `_run`:
G groups of S tokens.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from moe_jax.configuration import ConfigError, lists_to_tuples, require, require_name
from moe_jax.experts.apply import apply_experts
from moe_jax.experts.combine import Combine
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import EXPERT_KINDS, FFNKind, FFNParams
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.experts.plan import Plan, plan_here
from moe_jax.layers.automatic_axes import explicit_axes, on_automatic_axes
from moe_jax.layers.dropout import with_dropout
from moe_jax.layers.feed_forward import Network
from moe_jax.layers.initialization import kernel_init, network_params
from moe_jax.layers.mode import Mode
from moe_jax.routing import KINDS, AnyRouter, Assignment, Setting, check_router
from moe_jax.routing.capacity import CapacityRule
from moe_jax.routing.losses import LossLevel
from moe_jax.routing.router import STATE, Tokens
from moe_jax.routing.statistics import mean_of_parts, report
from moe_jax.routing.switch import Switch
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import current_mesh, keep_sharded_by_token, token_shards
from moe_jax.runtime.parameters import Parameter, within

Place = Literal["feed_forward", "attention"]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts: which router, how many experts per token, and how the experts are run.

    Attributes:
      num_experts: E.
      router: the router and its options, one of `moe_jax.routing.ROUTERS`; a name takes the default options.
      k: experts per token; with expert choice, the average.
      capacity_factor: gives each expert C = ceil(capacity_factor * S * k / E) seats in a group (see `capacity_rule`);
        None drops nothing.
      eval_capacity_factor: capacity factor in evaluation; None takes `capacity_factor`.
      group_size: S, tokens that share one capacity, of one or several sequences; None makes each sequence a group.
      expert_dim: F of one expert; None takes the model's `ffn_dim`. A layer without a model must set it.
      ffn: the expert network, a name in `moe_jax.experts.ffn.FFN_KINDS`, or `linear`, a matrix from D to F; None takes
        the model's `ffn`. A layer without a model must set it.
      execution: how experts are run, a name in `moe_jax.experts.executions.EXECUTIONS`; `auto` takes the fastest for
        this platform, see `moe_jax.experts.plan`.
      kernel: kernel of the grouped matrix products (execution `dropless`), a name in
        `moe_jax.experts.kernels.choice.KERNELS`; `auto` takes the fastest for the platform that
        the program is compiled or exported for.
      losses: coefficients of the router's losses by name; losses that are not named, or all if None, have those of the
        router's paper (`Router.losses`). Each loss is averaged over layers.
      loss_level: tokens over which a loss is computed before it is averaged: those of a `group`, a `sequence` or the
        `batch`; None takes the router's own.
      capacity_rule: how a capacity factor becomes seats; see `moe_jax.routing.capacity.capacity_per_expert`.
      combine: combine weights multiply the experts' `output` or their `input` (Llama 4), or `mix` it with the token
        (BASE); see `moe_jax.experts.combine`.
      shared_dim: width of a network that every token runs besides its experts (DeepSeekMoE); None has none.
      shared_gate: whether a learned sigmoid gate scales that network for each token (Qwen2-MoE).
      parallel: how tokens reach experts on other devices, where `jax.set_mesh` says that there are any.
      allow_noncausal_router: run a router that lets a token see later ones (expert choice) in a causal model.
      places: parts of a sparse layer that are mixtures: its `feed_forward`, or the `attention`'s projections to
        queries, keys and values (Switch Transformer, appendix A), or both.
      dropout: share of the experts' hidden values that training sets to 0 (expert dropout: Switch Transformer, section
        4.2); None takes the model's `dropout`, and without a model drops nothing.
      router_dtype: precision to which the router's logits and combine weights are rounded; `bfloat16` is for tests of
        its effect (Switch Transformer, table 2).
    """

    num_experts: int
    router: AnyRouter = dataclasses.field(default_factory=Switch)
    k: int = 1
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    group_size: int | None = None
    expert_dim: int | None = None
    ffn: str | None = None
    execution: str = "auto"
    kernel: KernelChoice = "auto"
    losses: Mapping[str, float] | None = None
    loss_level: LossLevel | None = None
    capacity_rule: CapacityRule = "ceil"
    combine: Combine = "output"
    shared_dim: int | None = None
    shared_gate: bool = False
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    allow_noncausal_router: bool = False
    places: tuple[Place, ...] = ("feed_forward",)
    dropout: float | None = None
    router_dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        object.__setattr__(self, "router", KINDS.make(self.router, "router"))
        if self.losses is not None:
            object.__setattr__(self, "losses", FrozenDict(self.losses))
        accepted = f"one or both of {', '.join(get_args(Place))}"
        require(len(set(self.places)) == len(self.places) >= 1, "places", self.places, accepted)
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1, or None")
        require(self.num_experts >= 1, "num_experts", self.num_experts, "an integer of at least 1")
        require_name(self.execution, ["auto", *EXECUTIONS], "execution")
        if self.ffn is not None:
            require_name(self.ffn, EXPERT_KINDS, "ffn")
        require(1 <= self.k <= self.num_experts, "k", self.k, f"1 to num_experts ({self.num_experts})")
        for name in ("capacity_factor", "eval_capacity_factor"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a positive number, finite, or None")
        for name in ("group_size", "expert_dim", "shared_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "an integer of at least 1, or None")
        require(
            self.shared_dim is None or self.ffn != "linear", "shared_dim", self.shared_dim, "None, with ffn='linear'"
        )
        require(self.shared_dim is not None or not self.shared_gate, "shared_gate", True, "False, without shared_dim")
        self._check_router()

    def _check_router(self) -> None:
        named, rule = f"with router {self.router_name!r}", self.capacity_rule
        accepted = "ceil, with capacity_factor=None"
        require(self.capacity_factor is not None or rule == "ceil", "capacity_rule", rule, accepted)
        check_router(self.router, self.setting(), "router")
        evaluated = self.eval_capacity_factor
        require(self.router.drops or evaluated is None, "eval_capacity_factor", evaluated, f"None, {named}")
        accepted = f"an integer, {named}: the number of its parameters depends on it"
        require(self.group_size is not None or not self.router.needs_group_size, "group_size", None, accepted)
        combines = self.router.decision.combines
        require(self.combine in combines, "combine", self.combine, f"{', '.join(combines)}, {named}")
        if "attention" in self.places or self.ffn == "linear":
            accepted = "output, for experts in the attention or ffn='linear', whose results are no tokens"
            require(self.combine == "output", "combine", self.combine, accepted)
        for loss, coefficient in (self.losses or {}).items():
            known = self.router.losses
            require(
                loss in known, "losses", loss, f"losses of router {self.router_name!r}: {', '.join(known) or 'none'}"
            )
            number = isinstance(coefficient, int | float) and coefficient >= 0
            require(number, f"losses.{loss}", coefficient, "a number of at least 0")

    @property
    def router_name(self) -> str:
        """The router's name in `moe_jax.routing.ROUTERS`."""
        return KINDS.name_of(self.router)

    def setting(self, training: bool = True) -> Setting:
        """Returns the router's settings, with the capacity of training or of evaluation."""
        factor = self.capacity_factor
        if not training and self.eval_capacity_factor is not None:
            factor = self.eval_capacity_factor
        return Setting(self.num_experts, self.k, factor, self.capacity_rule, self.loss_level)

    @property
    def causal(self) -> bool:
        """True if no token's experts and weights depend on later tokens, neither in training nor in evaluation."""
        return all(self.router.causal(self.setting(training)) for training in (True, False))

    @property
    def coefficients(self) -> dict[str, float]:
        """The coefficient of each of the router's losses."""
        return dict(self.router.losses) | dict(self.losses or {})

    def plan(self, training: bool = True) -> Plan:
        """Makes the plan by which experts run on the mesh of the surrounding `jax.set_mesh`, or on one device.

        Raises:
          ConfigError: experts cannot be run as the configuration asks.
        """
        factor = self.setting(training).capacity_factor
        rows_per_token = self.k * (1.0 if factor is None else factor)
        return plan_here(self.execution, self.kernel, self.parallel, rows_per_token)

    def projection(self, width: int) -> "MoEConfig":
        """Returns a mixture of matrices from D to `width`, which replaces one projection of the attention."""
        return dataclasses.replace(self, ffn="linear", expert_dim=width, shared_dim=None, shared_gate=False)

    def resolve(self, ffn_dim: int, ffn: str, dropout: float) -> "MoEConfig":
        """Returns the mixture with the model's values for `expert_dim`, `ffn` and `dropout` where they are None."""
        return dataclasses.replace(
            self,
            expert_dim=self.expert_dim or ffn_dim,
            ffn=self.ffn or ffn,
            dropout=dropout if self.dropout is None else self.dropout,
        )

    def require_causal(self) -> None:
        """Raises ConfigError where a token would see later ones, unless `allow_noncausal_router` says that it may."""
        if not self.causal and not self.allow_noncausal_router:
            raise ConfigError(
                f"router is {self.router_name!r}, with which a token's experts depend on later tokens, so a causal "
                "model would see the future it is to predict; accepted: another router, or allow_noncausal_router=True "
                "to run it knowingly"
            )

    def router_parameters(self, model_dim: int) -> dict[str, Parameter]:
        """Returns the router's parameters by path within it."""
        # Only routers that need a group's size have parameters that depend on it.
        return self.router.parameters(model_dim, self.group_size or 1, self.setting())

    def parameters(self, model_dim: int) -> dict[str, Parameter]:
        """Returns the layer's parameters by path within it, for tokens of width `model_dim`.

        Raises:
          ConfigError: `expert_dim` or `ffn` is None, and not taken from a model yet.
        """
        self.require_resolved()
        parameters = EXPERT_KINDS[self.ffn].parameters(model_dim, self.expert_dim, self.num_experts)
        parameters |= within("router", self.router_parameters(model_dim))
        if self.shared_dim is not None:
            parameters |= within("shared", EXPERT_KINDS[self.ffn].parameters(model_dim, self.shared_dim))
        if self.shared_gate:
            parameters["shared_gate/kernel"] = Parameter((model_dim, 1), (None, None))
        return parameters

    def require_resolved(self) -> None:
        """Raises ConfigError where the experts' width or network is still to be taken from a model."""
        for field, accepted in (("expert_dim", "an integer of at least 1"), ("ffn", ", ".join(sorted(EXPERT_KINDS)))):
            value = getattr(self, field)
            require(value is not None, field, value, f"{accepted}; only a model has one to take for None")


class MoE(nn.Module):
    """The layer: routes groups of tokens and runs their experts. The caller adds the residual.

    A token that no expert runs gets zeros from them. The router's losses and metrics are sown into the collection
    `routing` (`moe_jax.routing.statistics`), unweighted; a train step multiplies losses by their `coefficients`. What a
    router remembers, and the experts' placement, is in the collection `router_state`, which the train step updates.

    Attributes:
      config: the mixture, with `expert_dim` and `ffn`.
      mode: training or evaluation, precision and scale of initialisation; its `dropout` is not used here.
    """

    config: MoEConfig
    mode: Mode = Mode()

    @typed
    def __call__(
        self,
        x: Float[Array, "..."],
        token_valid: Bool[Array, "B S"] | None = None,
        ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S O"]:
        """Runs tokens. Without any, gradients of parameters are 0, and metrics are those of a group of padding.

        Args:
          x: the tokens [B, S, D].
          token_valid: false for padding, which no expert runs; None where there is none.
          ids: index of each token in the vocabulary, for routers that look at it.
          positions: position of each token in its document, for routers that look at it.

        Raises:
          ConfigError: `x` has other axes, `group_size` does not divide its tokens, or the configuration leaves
            `expert_dim` or `ffn` to a model.
        """
        self.config.require_resolved()
        require(x.ndim == 3, "shape of x", x.shape, "[batch, sequence, model width]")
        if token_valid is None:
            token_valid = jnp.ones(x.shape[:2], bool)
        run = MoE._on_automatic_axes if explicit_axes() else MoE._layer
        if token_valid.size:
            return run(self, x, token_valid, ids, positions)
        # Groups of padding take the place of none, so that nothing divides by a number of tokens that is 0.
        mesh = current_mesh()
        groups = 1 if mesh is None else token_shards(mesh), self.config.group_size or x.shape[1] or 1
        ids, positions = (None if values is None else jnp.zeros(groups, jnp.int32) for values in (ids, positions))
        y = run(self, jnp.zeros((*groups, x.shape[2]), x.dtype), jnp.zeros(groups, bool), ids, positions)
        return jnp.zeros((*x.shape[:2], y.shape[2]), y.dtype)

    @nn.compact
    def _layer(
        self,
        x: Float[Array, "B S D"],
        token_valid: Bool[Array, "B S"],
        ids: Int[Array, "B S"] | None,
        positions: Int[Array, "B S"] | None,
    ) -> Float[Array, "B S O"]:
        config, mode = self.config, self.mode
        kind = self._expert()
        params = network_params(
            self, kind, x.shape[-1], config.expert_dim, mode.init_scale, mode.dtype, config.num_experts
        )
        group_size = config.group_size or x.shape[1]
        count = token_valid.size
        require(count % group_size == 0, "group_size", group_size, f"a divisor of {count} tokens")
        # Padding may hold anything, even NaN, which a weight of 0 would pass on.
        x = jnp.where(token_valid[..., None], x, jnp.zeros((), x.dtype))

        def by_group(values: Array | None) -> Array | None:
            return None if values is None else keep_sharded_by_token(values.reshape(-1, group_size, *values.shape[2:]))

        tokens = Tokens(by_group(x), by_group(token_valid), by_group(ids), by_group(positions), x.shape[1])
        setting, precision = config.setting(mode.training), jnp.dtype(config.router_dtype)
        router = config.router.module(setting, mode.training, precision, name="router")
        inputs = tokens.x.astype(mode.dtype)
        decision = router(tokens)
        y = decision.leave(self._run(decision.enter(inputs), self._stored(decision.assignment()), params, kind))
        y = keep_sharded_by_token(y.reshape(*x.shape[:2], -1))
        return y if config.shared_dim is None else y + self._shared(x)

    _on_automatic_axes = on_automatic_axes(_layer)

    def _stored(self, assignment: Assignment) -> Assignment:
        """Replaces each expert's index by its row in the stored parameters, where rebalancing may move experts."""
        if self.config.parallel.rebalance_every is None:
            return assignment
        count = self.config.num_experts
        placement = self.variable(STATE, "placement", lambda: jnp.arange(count, dtype=jnp.int32))
        return assignment.replace(expert=placement.value[assignment.expert])

    def _expert(self) -> FFNKind:
        """Returns the expert network."""
        kind, dropout = EXPERT_KINDS[self.config.ffn], self.mode.active(self.config.dropout or 0.0)
        return kind if kind.linear else with_dropout(kind, dropout)

    def _run(
        self, x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams, kind: FFNKind
    ) -> Float[Array, "G S O"]:
        plan = self.config.plan(self.mode.training)
        y, metrics = apply_experts(plan, x, assignment, params, kind, self.config.combine)
        report(self, {name: mean_of_parts(value) for name, value in metrics.items()})
        return y

    def _shared(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        config, mode = self.config, dataclasses.replace(self.mode, dropout=0.0)
        y = Network(config.shared_dim, config.ffn).make(mode, "shared")(x)
        if not config.shared_gate:
            return y
        gate = nn.Dense(1, use_bias=False, dtype=mode.dtype, kernel_init=kernel_init(1.0), name="shared_gate")(x)
        return jax.nn.sigmoid(gate) * y
