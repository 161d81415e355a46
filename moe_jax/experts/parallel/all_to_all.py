"""Strategy `all_to_all`: each device sends every other the seats of its experts, filled or empty.

G groups of one device, S tokens of a group, E experts of all devices, P devices on the expert axis, C capacity, D model
width, O output width (D; F for linear experts).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.dispatch import combine_rows, dispatch_rows
from moe_jax.experts.execution import Run
from moe_jax.experts.ffn import FFNKind, FFNParams, feed_forward, products_by
from moe_jax.experts.padded import seat_rows
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.experts.parallel.strategy import Metrics, Strategy
from moe_jax.routing.assignment import Assignment


def all_to_all(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    exchange: Exchange,
    run: Run,
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Sends P - 1 of P parts of E * G * C seats each way, whatever the load: GShard's exchange (section 3.3).

    Experts run as in `padded`, on seats that are there already, so `run` is not called.
    """
    del run
    devices = exchange.devices
    experts, seats = assignment.num_experts, assignment.num_groups * assignment.capacity
    row = seat_rows(assignment)
    rows = dispatch_rows(x, assignment, row, experts * seats)
    received = exchange.swap(rows.reshape(devices, experts // devices, seats, -1))
    by_expert = received.swapaxes(0, 1).reshape(experts // devices, devices * seats, -1)
    outputs = feed_forward(by_expert, params, kind, products_by(jnp.matmul))
    returned = exchange.swap(outputs.reshape(experts // devices, devices, seats, -1).swapaxes(0, 1))
    return combine_rows(returned.reshape(len(rows), -1), assignment, row), {}


ALL_TO_ALL = Strategy(all_to_all, "padded", preferred_on=("cpu", "gpu", "tpu"))
