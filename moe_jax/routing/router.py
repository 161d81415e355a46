"""Routers: a kind is a frozen dataclass of options with pure functions, and one Linen module runs any kind.

G groups, S tokens of a group, D model width, E experts, K choices per token, C capacity.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from moe_jax.configuration import ConfigError, Kinds, errors_within, require
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import CapacityRule, capacity_per_expert
from moe_jax.routing.decision import Decision
from moe_jax.routing.losses import LossLevel, balance_loss, regroup, variation_loss, z_loss
from moe_jax.routing.metrics import probability_metrics
from moe_jax.routing.statistics import Metrics, Statistic, report
from moe_jax.runtime.arguments import as_index, as_mask
from moe_jax.runtime.parameters import Parameter

STATE = "router_state"
RNG = "routing"
FLOAT32 = jnp.dtype(jnp.float32)


@struct.dataclass
class Tokens:
    """Tokens as a router sees them.

    Attributes:
      x: the tokens' vectors.
      valid: false for padding.
      ids: index of each token in the vocabulary; None where it is unknown.
      positions: position of each token in its document; None where it is unknown.
      sequence_length: tokens of a sequence; a group's tokens are consecutive ones of the batch [B * sequence_length]
        (static). None makes each group a sequence.
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    x: Float[Array, "G S D"]
    valid: Bool[Array, "G S"]
    ids: Int[Array, "G S"] | None = None
    positions: Int[Array, "G S"] | None = None
    sequence_length: int | None = struct.field(pytree_node=False, default=None)

    def typed(self) -> "Tokens":
        """Returns the same with a bool mask and int32 indices; raises ConfigError for masks or indices of floats."""
        ids = None if self.ids is None else as_index("ids", self.ids)
        positions = None if self.positions is None else as_index("positions", self.positions)
        return self.replace(valid=as_mask("valid", self.valid), ids=ids, positions=positions)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The numbers that a layer sets for its router, whatever its kind.

    Attributes:
      num_experts: E.
      k: experts per token.
      capacity_factor: seats relative to even load; None drops nothing.
      capacity_rule: how a factor becomes seats; see `capacity_per_expert`.
      loss_level: parts of the batch over which losses are means; None takes the router's `own_loss_level`.
    """

    num_experts: int
    k: int = 1
    capacity_factor: float | None = None
    capacity_rule: CapacityRule = "ceil"
    loss_level: LossLevel | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call(Setting):
    """The setting and the variables with which a router runs once.

    Attributes:
      loss_level: parts of the batch over which losses are means.
      capacity: C, seats of each expert in each group.
      training: whether to draw and to explore as in training.
      params: the router's parameters by name.
      state: the router's entries in the collection `router_state` by name.
      rng: makes a new key, another one at each call.
    """

    loss_level: LossLevel
    capacity: int
    training: bool
    params: Mapping[str, Array]
    state: Mapping[str, Array]
    rng: Callable[[], Key[Array, ""]]

    def by_part(self, x: Shaped[Array, "G S ..."], tokens: Tokens) -> Shaped[Array, "P N ..."]:
        """Regroups values of tokens by the parts of the batch over which losses are means."""
        return regroup(x, self.loss_level, tokens.sequence_length)

    def balance_loss(
        self, probabilities: Float[Array, "G S E"], expert: Int[Array, "G S K"], tokens: Tokens
    ) -> Statistic:
        """Computes `moe_jax.routing.losses.balance_loss` at this level."""
        parts = (self.by_part(x, tokens) for x in (probabilities, expert, tokens.valid))
        return balance_loss(*parts, self.loss_level)

    def variation_loss(self, amounts: Float[Array, "G S E"], tokens: Tokens) -> Statistic:
        """Computes `moe_jax.routing.losses.variation_loss` at this level."""
        return variation_loss(self.by_part(amounts, tokens), self.by_part(tokens.valid, tokens), self.loss_level)


@dataclasses.dataclass(frozen=True)
class Router:
    """A kind of router: its fields are its options, its methods pure functions; a subclass decides in `decide`.

    Attributes:
      choices_allowed: values of `k` that it takes; `all` takes E; None takes any.
      has_parameters: whether it learns a projection.
      drops: whether a capacity may drop tokens.
      needs_group_size: whether the number of its parameters depends on the group's size.
      decision: the kind of decision that it returns.
      loss_levels: the values of `loss_level` that change a loss.
      own_loss_level: the `loss_level` of its paper.
      losses: the losses that it reports, with the coefficient of its paper; 0 where the paper has none.
      init_std: standard deviation of the projection at its start.
      paper: its origin.
      year: the paper's year.
    """

    choices_allowed: ClassVar[tuple[int, ...] | Literal["all"] | None] = None
    has_parameters: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    needs_group_size: ClassVar[bool] = False
    decision: ClassVar[type[Decision]] = Assignment
    loss_levels: ClassVar[tuple[LossLevel, ...]] = get_args(LossLevel)
    own_loss_level: ClassVar[LossLevel] = "group"
    losses: ClassVar[Mapping[str, float]] = {"balance_loss": 0.01, "z_loss": 0.0}
    # Without a type, so that a router that makes it an option lists it after its others.
    init_std = 0.02
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0

    def check(self, setting: Setting) -> None:
        """Raises ConfigError, with the bare name of an option, where the options do not go with `setting`."""

    def causal(self, setting: Setting) -> bool:
        """Says whether a token's experts and weights are independent of later tokens."""
        return True

    def chooses_by_capacity(self, setting: Setting) -> bool:
        """Says whether the capacity decides which experts a token asks for, and not only which it keeps."""
        return False

    def slots(self, tokens: int, setting: Setting) -> int | None:
        """Counts the slots into which a group of `tokens` is mixed; None where experts run the tokens themselves."""
        return None

    def parameters(self, model_dim: int, tokens: int, setting: Setting) -> dict[str, Parameter]:
        """Returns the router's parameters by path, for groups of `tokens` tokens. They are whole on every device."""
        return {"kernel": whole(model_dim, setting.num_experts)} if self.has_parameters else {}

    def initializer(self, name: str) -> nn.initializers.Initializer:
        """Returns the distribution from which the parameter `name` starts."""
        return nn.initializers.normal(self.init_std) if name == "kernel" else nn.initializers.zeros

    def initial_state(self, setting: Setting) -> dict[str, Array]:
        """Returns what the router remembers before the first step; {} where it remembers nothing."""
        return {}

    def perturb_input(self, x: Float[Array, "G S D"], call: Call) -> Float[Array, "G S D"]:
        """Returns the float32 tokens as the projection sees them; exploration disturbs this copy alone."""
        return x

    def project(self, x: Float[Array, "G S D"], call: Call) -> Float[Array, "G S E"]:
        """Computes float32 logits."""
        if not self.has_parameters:
            return jnp.zeros((*x.shape[:2], call.num_experts), jnp.float32)
        return exact_matmul(x, call.params["kernel"])

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Decision, Metrics]:
        """Decides on float32 `logits`; returns with it the router's losses and what `next_state` needs."""
        raise NotImplementedError

    def probabilities(self, logits: Float[Array, "G S E"], call: Call) -> Float[Array, "G S E"]:
        """Returns the probabilities that metrics describe."""
        return jax.nn.softmax(logits)

    def next_state(
        self, state: Mapping[str, Array], metrics: Mapping[str, Array], setting: Setting
    ) -> Mapping[str, Array]:
        """Returns the router's entries in `router_state` after a training step that reported `metrics`."""
        del metrics, setting
        return state

    def module(
        self,
        setting: Setting,
        training: bool = False,
        dtype: jnp.dtype = FLOAT32,
        name: str | None = None,
    ) -> "RouterModule":
        """Makes the Linen module that runs this router."""
        return RouterModule(self, setting, training, dtype, name=name)


class MissingKeyError(ConfigError):
    """Raised when a router draws and `apply` was given no key for it."""


class RouterModule(nn.Module):
    """The Linen module of any router: declares its parameters and state, and reports its metrics.

    Reports the metrics of `moe_jax.routing.metrics` and each of the router's losses, unweighted; see
    `moe_jax.routing.statistics.report`.

    Attributes:
      router: the kind of router and its options.
      setting: see `Setting`.
      training: whether to draw and to explore as in training.
      dtype: precision to which logits and weights are rounded; float32 but to show what another does.
    """

    router: Router
    setting: Setting
    training: bool = False
    dtype: jnp.dtype = FLOAT32

    def __call__(self, tokens: Tokens) -> Decision:
        """Routes `tokens`; padding takes no seat and counts in no loss."""
        tokens = tokens.typed()
        decision, metrics = self.route(tokens)
        report(self, decision.metrics(tokens.valid, self.setting.k) | metrics)
        return decision

    @nn.compact
    def route(self, tokens: Tokens) -> tuple[Decision, Metrics]:
        """Decides, and returns with it the router's losses and the metrics of its logits; reports nothing."""
        router, (_, length, width) = self.router, tokens.x.shape
        params = {
            name: self.param(name, router.initializer(name), parameter.shape, jnp.float32)
            for name, parameter in router.parameters(width, length, self.setting).items()
        }
        state = {
            name: self.variable(STATE, name, lambda start=start: start).value
            for name, start in router.initial_state(self.setting).items()
        }
        call = self.call(tokens, params, state)
        logits = self._round(router.project(router.perturb_input(tokens.x.astype(jnp.float32), call), call))
        decision, metrics = router.decide(logits, tokens, call)
        if router.has_parameters:
            metrics = metrics | probability_metrics(router.probabilities(logits, call), tokens.valid)
        if "z_loss" in router.losses:
            metrics = metrics | {"z_loss": z_loss(logits, tokens.valid)}
        return decision.rounded(self._round), metrics

    def call(self, tokens: Tokens, params: Mapping[str, Array], state: Mapping[str, Array]) -> Call:
        """Returns the setting and the variables for one run on `tokens`."""
        setting, length = self.setting, tokens.x.shape[1]
        capacity = capacity_per_expert(
            setting.capacity_factor, length, setting.k, setting.num_experts, setting.capacity_rule
        )
        return Call(
            **vars(setting) | {"loss_level": setting.loss_level or self.router.own_loss_level},
            capacity=capacity,
            training=self.training,
            params=params,
            state=state,
            rng=self._key,
        )

    def _key(self) -> Key[Array, ""]:
        """Returns a new key, another one at each call; raises MissingKeyError if `apply` was given none."""
        # Flax takes the key of parameters, in `init`, where there is no other.
        if not (self.has_rng(RNG) or self.has_rng("params")):
            given = f"rngs={{{RNG!r}: jax.random.key(SEED), ...}}"
            name = KINDS.name_of(self.router)
            raise MissingKeyError(f"rngs[{RNG!r}] is None; accepted: {given}, from which router {name!r} draws")
        return self.make_rng(RNG)

    def _round(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Rounds to the digits of `dtype`, in float32."""
        return x.astype(self.dtype).astype(jnp.float32)


# The routers by name, filled where they are listed, in `moe_jax.routing`: a router may hold others.
ROUTERS: dict[str, type[Router]] = {}

KINDS = Kinds(ROUTERS, default="switch")
# Values of which `KINDS.make` makes a router.
RouterLike = Router | str | Mapping[str, Any]
AnyRouter = Annotated[RouterLike, KINDS]


def check_router(router: Router, setting: Setting, path: str = "") -> None:
    """Raises ConfigError where a router does not go with what a layer sets for it.

    Args:
      router: the router.
      setting: the layer's numbers; messages name its fields as the layer does.
      path: dotted name of the router within the layer, for messages about its options.
    """
    named = f"with router {KINDS.name_of(router)!r}"
    allowed = (setting.num_experts,) if router.choices_allowed == "all" else router.choices_allowed
    if allowed is not None:
        require(setting.k in allowed, "k", setting.k, f"{' or '.join(map(str, allowed))}, {named}")
    if not router.drops:
        require(setting.capacity_factor is None, "capacity_factor", setting.capacity_factor, f"None, {named}")
    level = setting.loss_level
    accepted = f"{', '.join(router.loss_levels) or None}, {named}"
    require(level is None or level in router.loss_levels, "loss_level", level, accepted)
    with errors_within(path):
        router.check(setting)


def exact_matmul(x: Float[Array, "G S D"], kernel: Float[Array, "D E"]) -> Float[Array, "G S E"]:
    """Multiplies in full float32; accelerators round float32 operands unless told otherwise, which changes choices."""
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def whole(*shape: int, multiplies: bool = True) -> Parameter:
    """Returns a parameter that is whole on every device."""
    return Parameter(shape, (None,) * len(shape), multiplies)
