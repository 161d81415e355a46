"""Experts as one batched matrix product over their seats; empty seats are zeros.

G groups, S tokens of a group, A assignments of a group, E experts, C capacity, D model width, O output width (D; F for
linear experts).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.dispatch import combine_rows, dispatch_rows
from moe_jax.experts.execution import Execution, Work
from moe_jax.experts.ffn import FFNKind, FFNParams, feed_forward, products_by
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment


def padded(x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams, kind: FFNKind) -> Float[Array, "G S O"]:
    """Gathers tokens into the seats of their experts [E, G * C, D], runs all experts at once, gathers results back.

    The cost is E * G * C applications of an expert, whatever the load: `capacity_factor` for each token and choice.
    """
    groups, experts, capacity = assignment.num_groups, assignment.num_experts, assignment.capacity
    row = seat_rows(assignment)
    rows = dispatch_rows(x, assignment, row, experts * groups * capacity)
    outputs = feed_forward(rows.reshape(experts, groups * capacity, -1), params, kind, products_by(jnp.matmul))
    return combine_rows(outputs.reshape(len(rows), -1), assignment, row)


def seat_rows(assignment: Assignment) -> Int[Array, "G A"]:
    """Returns the number of each assignment's seat among those [E, G, C] of all experts; NOWHERE if it is not kept."""
    group = jnp.arange(assignment.num_groups, dtype=jnp.int32)[:, None]
    row = (assignment.expert * assignment.num_groups + group) * assignment.capacity + assignment.seat
    return jnp.where(assignment.kept, row, NOWHERE)


def _flops_per_token(work: Work) -> float:
    """Counts an expert on every seat."""
    return work.seats_per_token * work.expert_flops


PADDED = Execution(padded, _flops_per_token)
