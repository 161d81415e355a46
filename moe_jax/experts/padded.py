"""Experts as one batched matrix product over their seats, the empty ones filled with zeros.

G groups, S tokens of a group, A assignments of a group, E experts, C capacity, D model width, O width of
results (D, but of linear experts), N = G * C.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.ffn import FFNKind, Weights, feed_forward, products_by
from moe_jax.experts.placement import combine_rows, dispatch_rows
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment


def padded(x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind) -> Float[Array, "G S O"]:
    """Gathers each expert's tokens into its seats [E, G * C, D], runs all experts at once, gathers the results back.

    Costs E * G * C expert applications whatever the load: capacity_factor times the tokens' own.
    """
    groups, experts, capacity = assignment.num_groups, assignment.num_experts, assignment.capacity
    place = seat_places(assignment)
    rows = dispatch_rows(x, assignment, place, experts * groups * capacity)
    outputs = feed_forward(rows.reshape(experts, groups * capacity, -1), weights, kind, products_by(jnp.matmul))
    return combine_rows(outputs.reshape(len(rows), -1), assignment, place)


def seat_places(assignment: Assignment) -> Int[Array, "G A"]:
    """Row of each assignment's seat in [E, G, C] flattened; NOWHERE if it is not carried out."""
    group = jnp.arange(assignment.num_groups, dtype=jnp.int32)[:, None]
    place = (assignment.expert * assignment.num_groups + group) * assignment.capacity + assignment.seat
    return jnp.where(assignment.kept, place, NOWHERE)
