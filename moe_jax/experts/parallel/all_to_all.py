"""Seats of a fixed capacity: each device sends every other the seats of its experts, filled or not.

G groups of one device, S tokens of a group, E experts of all devices, L experts of one, P devices on the expert axis,
C capacity, D model width, O width of results (D, but of linear experts).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFNKind, Weights, feed_forward, products_by
from moe_jax.experts.padded import seat_places
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.experts.placement import combine_rows, dispatch_rows
from moe_jax.routing.assignment import Assignment


def all_to_all(
    x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind, exchange: Exchange
) -> Float[Array, "G S O"]:
    """Sends P - 1 of P parts of E * G * C seats each way, whatever the load: GShard's exchange (section 3.3)."""
    devices = exchange.devices
    experts, seats = assignment.num_experts, assignment.num_groups * assignment.capacity
    place = seat_places(assignment)
    rows = dispatch_rows(x, assignment, place, experts * seats)
    received = exchange.swap(rows.reshape(devices, experts // devices, seats, -1))
    by_expert = received.swapaxes(0, 1).reshape(experts // devices, devices * seats, -1)
    outputs = feed_forward(by_expert, weights, kind, products_by(jnp.matmul))
    returned = exchange.swap(outputs.reshape(experts // devices, devices, seats, -1).swapaxes(0, 1))
    return combine_rows(returned.reshape(len(rows), -1), assignment, place)
