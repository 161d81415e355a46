"""What every router's Linen module shares: a float32 projection, capacity, and the metrics it sows.

G groups, S tokens of a group, D model width, E experts, C capacity.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import CapacityRule, capacity_per_expert
from moe_jax.routing.losses import LossLevel, balance_loss, regroup, variation_loss, z_loss
from moe_jax.routing.metrics import assignment_metrics, probability_metrics
from moe_jax.routing.statistics import Statistic, mean_of_parts, report

STATE = "router_state"
RNG = "routing"

# By name: losses, and what else a router has to say.
Metrics = dict[str, Statistic]


@struct.dataclass
class Tokens:
    """What a router may look at.

    Attributes:
      x: the tokens' vectors.
      valid: false for padding.
      ids: of the tokens in the vocabulary; None where nobody knows them.
      positions: of each token in its document; None likewise.
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


class Router(nn.Module):
    """Turns tokens into an Assignment; a subclass says how in `decide`.

    Sows the metrics of `moe_jax.routing.metrics`, `capacity_factor` (as realised, after rounding), and each loss in
    `losses`, unweighted; see `moe_jax.routing.statistics.report`.

    Attributes:
      num_experts: E.
      k: experts per token.
      capacity_factor: seats relative to even load; None drops nothing.
      capacity_rule: how a factor becomes seats; see `capacity_per_expert`.
      loss_level: what the losses of a decision are means over; see `moe_jax.routing.losses`.
      training: whether to draw and to explore as in training.
      dtype: what logits and the weights of assignments are rounded to; float32 but to show what another does.
      choices_allowed: the values of `k` a router takes; `all` takes E; None takes any.
      has_parameters: whether the router learns a projection.
      drops: whether a capacity may drop tokens.
      mixes: whether it mixes tokens into slots, of which its parameters depend on the group's size.
      loss_levels: the values of `loss_level` that change a loss.
      losses: the losses the router sows, with the coefficient of its paper; 0 where that has none.
      init_std: standard deviation of the projection at its start.
      paper: where the router comes from.
      year: when.
    """

    num_experts: int
    k: int
    capacity_factor: float | None
    capacity_rule: CapacityRule = "ceil"
    loss_level: LossLevel = "group"
    training: bool = False
    dtype: jnp.dtype = jnp.dtype(jnp.float32)

    choices_allowed: ClassVar[tuple[int, ...] | Literal["all"] | None] = None
    has_parameters: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    loss_levels: ClassVar[tuple[LossLevel, ...]] = get_args(LossLevel)
    losses: ClassVar[Mapping[str, float]] = {"balance_loss": 0.01, "z_loss": 0.0}
    # Without a type: a router that makes it an option lists it after its others.
    init_std = 0.02
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0

    @property
    def causal(self) -> bool:
        """Whether a token's experts and weights are free of the content of later tokens."""
        return True

    @property
    def chooses_by_capacity(self) -> bool:
        """Whether the capacity says who is asked, and not only who keeps a seat."""
        return False

    def check(self) -> None:
        """Raises ConfigError, with the bare name of the field, where the fields do not go together."""

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, capacity: int) -> tuple[Assignment, Metrics]:
        """The decision on float32 `logits`, and what it alone knows: its losses, what `next_state` needs."""
        raise NotImplementedError

    def probabilities(self, logits: Float[Array, "G S E"]) -> Float[Array, "G S E"]:
        """What the metrics call the router's probabilities."""
        return jax.nn.softmax(logits)

    def next_state(self, state: Mapping[str, Array], metrics: Mapping[str, Array]) -> Mapping[str, Array]:
        """The router's entries in the collection `router_state` after a training step that sowed `metrics`."""
        del metrics
        return state

    def parameter_counts(self, tokens: int, model_dim: int) -> tuple[int, int]:
        """How many parameters multiply a token, and how many others there are, for groups of `tokens` tokens."""
        del tokens
        return model_dim * self.num_experts if self.has_parameters else 0, 0

    def __call__(self, tokens: Tokens) -> Assignment:
        """Routes `tokens`; padding takes no seat and counts in no loss."""
        assignment, metrics = self.route(tokens)
        metrics = assignment_metrics(assignment, tokens.valid) | dict(metrics)
        realised = assignment.capacity * self.num_experts / (assignment.num_tokens * self.k)
        metrics["capacity_factor"] = mean_of_parts(jnp.float32(realised))
        report(self, metrics)
        return assignment

    @nn.compact
    def route(self, tokens: Tokens) -> tuple[Assignment, Metrics]:
        """The decision, with the router's losses and what can be said of its logits, sowing nothing."""
        logits = self.rounded(self.project(self.perturb_input(tokens.x.astype(jnp.float32))))
        capacity = capacity_per_expert(
            self.capacity_factor, logits.shape[1], self.k, self.num_experts, self.capacity_rule
        )
        assignment, metrics = self.decide(logits, tokens, capacity)
        if isinstance(assignment, Assignment):
            assignment = assignment.replace(weight=self.rounded(assignment.weight))
        if self.has_parameters:
            metrics = metrics | probability_metrics(self.probabilities(logits), tokens.valid)
        if "z_loss" in self.losses:
            metrics = metrics | {"z_loss": z_loss(logits, tokens.valid)}
        return assignment, metrics

    def rounded(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Float32 again, of fewer digits if `dtype` has fewer."""
        return x.astype(self.dtype).astype(jnp.float32)

    def perturb_input(self, x: Float[Array, "G S D"]) -> Float[Array, "G S D"]:
        """The float32 tokens as the projection sees them: where exploration disturbs its input, and only its."""
        return x

    def project(self, x: Float[Array, "G S D"]) -> Float[Array, "G S E"]:
        """Float32 logits."""
        if not self.has_parameters:
            return jnp.zeros((*x.shape[:2], self.num_experts), jnp.float32)
        kernel = self.param(
            "kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.num_experts), jnp.float32
        )
        return exact_matmul(x, kernel)

    def by_part(self, x: Shaped[Array, "G S ..."], tokens: Tokens) -> Shaped[Array, "P N ..."]:
        """Values of tokens by the parts of the batch that a loss is a mean over."""
        return regroup(x, self.loss_level, tokens.sequence_length)

    def balance(self, probabilities: Float[Array, "G S E"], expert: Int[Array, "G S K"], tokens: Tokens) -> Statistic:
        """`balance_loss` at this router's `loss_level`."""
        parts = (self.by_part(x, tokens) for x in (probabilities, expert, tokens.valid))
        return balance_loss(*parts, self.loss_level)

    def variation(self, amounts: Float[Array, "G S E"], tokens: Tokens) -> Statistic:
        """`variation_loss` at this router's `loss_level`."""
        return variation_loss(self.by_part(amounts, tokens), self.by_part(tokens.valid, tokens), self.loss_level)


def exact_matmul(x: Float[Array, "G S D"], kernel: Float[Array, "D E"]) -> Float[Array, "G S E"]:
    """x @ kernel; accelerators round float32 operands unless told otherwise, and routing must not be rounded."""
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
