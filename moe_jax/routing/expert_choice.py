"""Expert choice: each expert takes the tokens it scores highest (Zhou et al. 2022, section 3.2).

G groups, S tokens of a group, E experts, C capacity, A = E * C assignments.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.routing.assignment import Assignment, decided
from moe_jax.routing.router import Router


def expert_choice(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int) -> Assignment:
    """Each expert takes its C best tokens of the group by softmax over experts; no renormalising, perfect balance.

    A token may be taken by any number of experts, or none. An expert takes fewer than C only if fewer tokens are valid.
    """
    groups, tokens, num_experts = logits.shape
    probabilities = jax.nn.softmax(logits)
    scores = jnp.where(token_valid[..., None], probabilities, -1.0).transpose(0, 2, 1)
    _, token = jax.lax.top_k(scores, capacity)
    token = decided(token.astype(jnp.int32))
    weight = jnp.take_along_axis(probabilities.transpose(0, 2, 1), token, axis=-1)
    requested = jnp.take_along_axis(jnp.broadcast_to(token_valid[:, None], scores.shape), token, axis=-1)
    expert = jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32)[None, :, None], token.shape)
    seat = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), token.shape)

    def flat(x: Array) -> Array:
        return x.reshape(groups, num_experts * capacity)

    return Assignment(
        token=flat(token),
        expert=flat(expert),
        weight=flat(weight),
        requested=flat(requested),
        seat=flat(seat),
        capacity=capacity,
        num_tokens=tokens,
        num_experts=num_experts,
        choices=None,
    )


class ExpertChoice(Router):
    """Expert choice; `k` is the mean number of experts per token (the paper's capacity factor, with capacity_factor=1).

    It needs no balance loss. In a causal model it leaks: whether a token is taken depends on later tokens.
    """

    causal = False
    losses = ("z_loss",)
    paper = "Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, arXiv:2202.09368"

    def decide(
        self, logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int
    ) -> tuple[Assignment, dict[str, Float[Array, ""]]]:
        return expert_choice(logits, token_valid, capacity), {}
