"""Assignment: which expert runs which token with what weight, and which of these got a seat.

G groups, S tokens of a group, E experts, K choices per token, A assignments of a group, C capacity.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

ROUTING_DECISION = "routing_decision"


def decided(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Names a routing decision, so that remat saves it: a recomputed top-k could break a tie differently."""
    return checkpoint_name(x, ROUTING_DECISION)


@struct.dataclass
class Assignment:
    """The value that routers make and ways of running experts take.

    y[t] = sum over a with token[a] = t and kept[a] of weight[a] * expert[expert[a]](x[t]), within each group.

    Attributes:
      token: token of each assignment, an index into the group.
      expert: expert of each assignment.
      weight: float32 weight of the expert's output; carries the router's gradient.
      requested: whether the router asked for it (false for padding, and where a policy turns a choice down).
      seat: place in its expert's queue, from 0, among the requested; meaningless where not requested.
      capacity: C, seats of each expert in each group (static).
      num_tokens: S (static).
      num_experts: E (static).
      choices: K when the assignments are choice-major, token[k * S + s] = s; None in any other order (static).
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

    @property
    def kept(self) -> Bool[Array, "G A"]:
        """Whether the assignment is carried out: it was requested and its seat exists."""
        return self.requested & (self.seat < self.capacity)

    @property
    def num_groups(self) -> int:
        return self.token.shape[0]

    def dispatch_mask(self) -> Bool[Array, "G S E"]:
        """Which expert runs which token."""
        return self._dense(self.kept.astype(jnp.int32)) > 0

    def combine_weights(self) -> Float[Array, "G S E"]:
        """The weight of each expert's output in each token's result; 0 where the expert does not run the token."""
        return self._dense(jnp.where(self.kept, self.weight, 0.0))

    def _dense(self, values: Shaped[Array, "G A"]) -> Shaped[Array, "G S E"]:
        group = jnp.arange(self.num_groups)[:, None]
        zeros = jnp.zeros((self.num_groups, self.num_tokens, self.num_experts), values.dtype)
        return zeros.at[group, self.token, self.expert].add(values)


def assign_choices(
    expert: Int[Array, "G S K"],
    weight: Float[Array, "G S K"],
    requested: Bool[Array, "G S K"],
    num_experts: int,
    capacity: int,
) -> Assignment:
    """The assignment of token-choice routing, seats given by position: every first choice before any second choice.

    Args:
      expert: each token's experts, best first.
      weight: their weights.
      requested: which choices ask for a seat.
      num_experts: E.
      capacity: C.
    """
    groups, tokens, choices = expert.shape

    def choice_major(x: Shaped[Array, "G S K"]) -> Shaped[Array, "G A"]:
        return x.transpose(0, 2, 1).reshape(groups, choices * tokens)

    expert, weight, requested = choice_major(expert), choice_major(weight), choice_major(requested)
    return Assignment(
        token=jnp.broadcast_to(jnp.tile(jnp.arange(tokens, dtype=jnp.int32), choices), expert.shape),
        expert=expert,
        weight=weight,
        requested=requested,
        seat=seats_by_position(expert, requested, num_experts),
        capacity=capacity,
        num_tokens=tokens,
        num_experts=num_experts,
        choices=choices,
    )


def seats_by_position(expert: Int[Array, "G A"], requested: Bool[Array, "G A"], num_experts: int) -> Int[Array, "G A"]:
    """How many earlier requested assignments of the same group ask for the same expert."""
    asks = jax.nn.one_hot(expert, num_experts, dtype=jnp.int32) * requested[..., None].astype(jnp.int32)
    earlier = jnp.cumsum(asks, axis=1) - asks
    return jnp.take_along_axis(earlier, expert[..., None], axis=-1)[..., 0]
