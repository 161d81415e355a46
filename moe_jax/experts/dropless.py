"""Experts as one grouped matrix product over assignments sorted by expert; no empty seats, so no capacity is needed.

G groups, S tokens of a group, A assignments of a group, E experts, D model width, M = G * A.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.ffn import FFNKind, Weights, feed_forward
from moe_jax.experts.permutation import NOWHERE
from moe_jax.experts.placement import combine_rows, dispatch_rows
from moe_jax.routing.assignment import Assignment


def dropless(
    x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind
) -> Float[Array, "G S D"]:
    """Runs exactly the kept assignments, grouped by expert; with capacity_factor=None that is every one requested."""
    place, group_sizes = sorted_places(assignment)
    rows = dispatch_rows(x, assignment, place, place.size)
    outputs = feed_forward(rows, weights, kind, lambda rows, w: jax.lax.ragged_dot(rows, w, group_sizes))
    return combine_rows(outputs, assignment, place)


def sorted_places(assignment: Assignment) -> tuple[Int[Array, "G A"], Int[Array, " E"]]:
    """Row of each kept assignment in order of expert (NOWHERE for the others), and how many rows each expert has."""
    last = assignment.num_experts
    key = jnp.where(assignment.kept, assignment.expert, last).reshape(-1)
    order = jnp.argsort(key, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).astype(jnp.int32)
    group_sizes = jnp.bincount(key, length=last + 1)[:last].astype(jnp.int32)
    return jnp.where(assignment.kept, place.reshape(assignment.kept.shape), NOWHERE), group_sizes
