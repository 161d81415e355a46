"""Assignment: which expert runs which token with what weight, and which assignments have a seat.

G groups, S tokens of a group, E experts, K choices per token, A assignments of a group, C capacity.
"""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.configuration import require_name
from moe_jax.routing.capacity import Priority, seats_by_position, seats_by_score
from moe_jax.routing.decision import Decision
from moe_jax.routing.metrics import load_metrics
from moe_jax.routing.statistics import Metrics, Statistic, mean_of_parts, mean_where, ratio
from moe_jax.runtime.arguments import as_index, as_mask, typed
from moe_jax.runtime.mesh import shard_over_groups
from moe_jax.runtime.remat import decided


@struct.dataclass
class Assignment(Decision):
    """The decision that routers make and executions carry out.

    y[t] = sum over a with token[a] = t and kept[a] of weight[a] * expert[expert[a]](x[t]), within each group.

    Attributes:
      token: token of each assignment, an index into the group.
      expert: expert of each assignment.
      weight: float32 weight of the expert's output; carries the router's gradient.
      requested: whether the router asks for it (false for padding, and for a choice that a policy turns down).
      seat: place in its expert's queue, from 0, among the requested assignments; meaningless for the others.
      capacity: C, seats of each expert in each group (static).
      num_tokens: S (static).
      num_experts: E (static).
      choices: K if the assignments are choice-major, token[k * S + s] = s; None in any other order (static).
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    token: Int[Array, "G A"]
    expert: Int[Array, "G A"]
    weight: Float[Array, "G A"]
    requested: Bool[Array, "G A"]
    seat: Int[Array, "G A"]
    capacity: int = struct.field(pytree_node=False)
    num_tokens: int = struct.field(pytree_node=False)
    num_experts: int = struct.field(pytree_node=False)
    choices: int | None = struct.field(pytree_node=False)

    def typed(self) -> "Assignment":
        """Returns the same with a bool mask and int32 indices; raises ConfigError for masks or indices of floats."""
        indices = {name: as_index(name, getattr(self, name)) for name in ("token", "expert", "seat")}
        return self.replace(requested=as_mask("requested", self.requested), **indices)

    @property
    def kept(self) -> Bool[Array, "G A"]:
        """True for an assignment that is carried out: it was requested and its seat exists."""
        return self.requested & (self.seat < self.capacity)

    @property
    def num_groups(self) -> int:
        return self.token.shape[0]

    def load(self) -> Float[Array, " E"]:
        """Counts the assignments that ask for each expert, before any is dropped."""

        def count(expert: Int[Array, "G A"], requested: Bool[Array, "G A"]) -> Float[Array, "G E"]:
            group = jnp.arange(expert.shape[0])[:, None]
            zeros = jnp.zeros((expert.shape[0], self.num_experts), jnp.float32)
            return zeros.at[group, expert].add(requested.astype(jnp.float32))

        return shard_over_groups(count)(self.expert, self.requested).sum(axis=0)

    def dispatch_mask(self) -> Bool[Array, "G S E"]:
        return self._dense(self.kept.astype(jnp.int32)) > 0

    def dropped_mask(self) -> Bool[Array, "G S E"]:
        return self._dense((self.requested & ~self.kept).astype(jnp.int32)) > 0

    def combine_weights(self) -> Float[Array, "G S E"]:
        return self._dense(jnp.where(self.kept, self.weight, 0.0))

    def describe(self, group: int) -> str:
        requested, kept = int(self.requested[group].sum()), int(self.kept[group].sum())
        return f"C = {self.capacity}, {requested - kept} of {requested} dropped"

    def enter(self, x: Float[Array, "G S D"]) -> Float[Array, "G S D"]:
        return x

    def assignment(self) -> "Assignment":
        return self

    def leave(self, y: Float[Array, "G S O"]) -> Float[Array, "G S O"]:
        return y

    def rounded(self, rounding: Callable[[Float[Array, "..."]], Float[Array, "..."]]) -> "Assignment":
        return self.replace(weight=rounding(self.weight))

    def metrics(self, token_valid: Bool[Array, "G S"], k: int) -> Metrics:
        """Returns the metrics that describe the decision alone.

        Returns:
          those of `load_metrics`, for the requested assignments, before any is dropped.
          fraction_dropped: share of the requested assignments that got no seat; 0 if there are none.
          tokens_unrouted: share of the valid tokens that no expert runs; 0 if there are none.
          seats_filled: share of all seats that are taken.
          capacity_factor: seats relative to even load, as realised after rounding.
        """
        requested = self.requested.sum(dtype=jnp.float32)
        kept = self.kept.sum(dtype=jnp.float32)
        seats = jnp.float32(self.num_groups * self.num_experts * self.capacity)
        runs = self.dispatch_mask().any(axis=-1)
        realised = jnp.float32(self.capacity * self.num_experts / (self.num_tokens * k))
        return load_metrics(self.load()) | {
            "fraction_dropped": Statistic((requested - kept, requested), ratio),
            "tokens_unrouted": mean_where((~runs).astype(jnp.float32), token_valid),
            "seats_filled": Statistic((kept, seats), ratio),
            "capacity_factor": mean_of_parts(realised),
        }

    def _dense(self, values: Shaped[Array, "G A"]) -> Shaped[Array, "G S E"]:
        def add(
            token: Int[Array, "G A"], expert: Int[Array, "G A"], values: Shaped[Array, "G A"]
        ) -> Shaped[Array, "G S E"]:
            zeros = jnp.zeros((token.shape[0], self.num_tokens, self.num_experts), values.dtype)
            return zeros.at[jnp.arange(token.shape[0])[:, None], token, expert].add(values)

        return shard_over_groups(add)(self.token, self.expert, values)


@typed
def assign_choices(
    expert: Int[Array, "G S K"],
    weight: Float[Array, "G S K"],
    requested: Bool[Array, "G S K"],
    num_experts: int,
    capacity: int,
    priority: Priority = "position",
    score: Float[Array, "G S K"] | None = None,
) -> Assignment:
    """Assigns each token to its choices; every first choice is seated before any second choice.

    Args:
      expert: each token's experts, best first.
      weight: their weights.
      requested: which choices ask for a seat.
      num_experts: E.
      capacity: C.
      priority: order of seating among choices of one rank. By `position`, the earlier token comes first; by
        `probability`, the choice with the larger score (mesh-tensorflow's switch_max); in `batch` priority, the choice
        whose token has the larger score for its first choice (V-MoE, section 4.1).
      score: the scores that priority compares; None takes the weights.
    """
    require_name(priority, get_args(Priority), "priority")
    groups, tokens, choices = expert.shape

    def choice_major(x: Shaped[Array, "G S K"]) -> Shaped[Array, "G A"]:
        return x.transpose(0, 2, 1).reshape(groups, choices * tokens)

    if priority == "position":
        seat = seats_by_position(choice_major(expert), choice_major(requested), num_experts)
    else:
        score = jax.lax.stop_gradient(weight if score is None else score)
        if priority == "batch":
            score = jnp.broadcast_to(score[..., :1], score.shape)
        seat = choice_major(seats_by_score(expert, requested, score, num_experts))
    return Assignment(
        token=jnp.broadcast_to(jnp.tile(jnp.arange(tokens, dtype=jnp.int32), choices), (groups, choices * tokens)),
        expert=choice_major(expert),
        weight=choice_major(weight),
        requested=choice_major(requested),
        seat=decided(seat),
        capacity=capacity,
        num_tokens=tokens,
        num_experts=num_experts,
        choices=choices,
    )


def top_experts(scores: Float[Array, "G S E"], k: int) -> Int[Array, "G S K"]:
    """Returns the experts of each token's `k` largest scores, largest first."""
    return shard_over_groups(lambda scores: jax.lax.top_k(scores, k)[1].astype(jnp.int32))(scores)


def best_choices(scores: Float[Array, "G S E"], k: int) -> tuple[Float[Array, "G S K"], Int[Array, "G S K"]]:
    """Returns each token's `k` largest scores, largest first, and their experts.

    Rematerialisation saves the experts, so that a decision is never made twice.
    """
    expert = decided(top_experts(scores, k))
    return jnp.take_along_axis(scores, expert, axis=-1), expert
