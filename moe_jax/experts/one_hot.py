"""Experts by one-hot matrix products, as GShard ran them (Lepikhin et al. 2020, section 3.2).

G groups, S tokens of a group, E experts, C capacity, D model width, O width of
results (D, but of linear experts).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFNKind, Weights, feed_forward, products_by
from moe_jax.routing.assignment import Assignment


def one_hot(x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind) -> Float[Array, "G S O"]:
    """Dispatches and combines by matrix products with masks [G, S, E, C]; cost and memory grow with S * E * C."""
    dispatch = _by_seat(assignment, jnp.ones_like(assignment.weight)).astype(x.dtype)
    combine = _by_seat(assignment, assignment.weight).astype(x.dtype)
    inputs = jnp.einsum("gsec,gsd->egcd", dispatch, x)
    products = products_by(lambda rows, w: jnp.einsum("egcn,enm->egcm", rows, w))
    outputs = feed_forward(inputs, weights, kind, products)
    return jnp.einsum("gsec,egcd->gsd", combine, outputs)


def _by_seat(assignment: Assignment, values: Float[Array, "G A"]) -> Float[Array, "G S E C"]:
    shape = (assignment.num_groups, assignment.num_tokens, assignment.num_experts, assignment.capacity)
    group = jnp.arange(assignment.num_groups)[:, None]
    values = jnp.where(assignment.kept, values, 0.0)
    place = (group, assignment.token, assignment.expert, assignment.seat)
    return jnp.zeros(shape, values.dtype).at[place].add(values, mode="drop")
