"""Switch routing: each token to its most probable expert (Fedus et al. 2021, section 2.1).

G groups, S tokens of a group, E experts, C capacity.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.routing.assignment import Assignment, assign_choices, decided
from moe_jax.routing.losses import balance_loss
from moe_jax.routing.router import Router


def switch(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int) -> Assignment:
    """Top-1 with the expert's probability as weight, never renormalised: that would make it 1 and stop its gradient."""
    probabilities = jax.nn.softmax(logits)
    expert = decided(jnp.argmax(probabilities, axis=-1, keepdims=True).astype(jnp.int32))
    weight = jnp.take_along_axis(probabilities, expert, axis=-1)
    return assign_choices(expert, weight, token_valid[..., None], logits.shape[-1], capacity)


class Switch(Router):
    """Switch Transformer's top-1 router with its load-balance loss."""

    choices_allowed = (1,)
    paper = "Fedus et al. 2021, Switch Transformers, arXiv:2101.03961"

    def decide(
        self, logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int
    ) -> tuple[Assignment, dict[str, Float[Array, ""]]]:
        assignment = switch(logits, token_valid, capacity)
        chosen = assignment.expert[..., None]
        return assignment, {"balance_loss": balance_loss(jax.nn.softmax(logits), chosen, token_valid)}
