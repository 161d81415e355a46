"""Nothing dropped: bounded buffers between devices, and buffers for the worst case when those overflow.

G groups of one device, S tokens of a group, P devices on the expert axis, L experts of one, R rows of a buffer, D model
width, O width of results (D, but of linear experts).
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from moe_jax.experts.dropless import dropless as run_rows
from moe_jax.experts.dropless import sorted_places
from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.experts.parallel.indices import (
    bounded_rows,
    buffer_places,
    experts_of_runs,
    local_rows,
    most_rows_to_one_device,
    rows_by_device,
)
from moe_jax.experts.placement import combine_rows, dispatch_rows
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import TOKEN_AXES


def dropless(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    exchange: Exchange,
    slack: float,
    kernel: KernelChoice,
) -> Float[Array, "G S O"]:
    """Runs every kept assignment.

    Args:
      x, assignment, weights, kind, exchange: as of all strategies.
      slack: rows that a device has room for from another, relative to an even load; where any has more for any, all
        take buffers that hold whatever may come.
      kernel: of grouped products; see `choose_kernel`.
    """
    short = bounded_rows(assignment, exchange.devices, slack)
    longest = most_rows_to_one_device(assignment, exchange.devices)

    def through(rows: int, *values: Any) -> Float[Array, "G S O"]:
        return _through_buffers(*values, kind, exchange, rows, kernel)

    if short == longest:
        return through(longest, x, assignment, weights)
    too_many = overflows(assignment, exchange.devices, slack)
    branches = functools.partial(through, longest), functools.partial(through, short)
    return jax.lax.cond(too_many, *branches, x, assignment, weights)


def overflows(assignment: Assignment, devices: int, slack: float) -> Bool[Array, ""]:
    """Whether any device has more rows for another than the bounded buffers hold; the same on all devices."""
    _, sizes = sorted_places(assignment)
    most = rows_by_device(sizes, devices).max()
    return jax.lax.pmax(most, TOKEN_AXES) > bounded_rows(assignment, devices, slack)


def _through_buffers(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    exchange: Exchange,
    rows: int,
    kernel: KernelChoice,
) -> Float[Array, "G S O"]:
    devices = exchange.devices
    place, sizes = buffer_places(assignment, devices, rows)
    sent = dispatch_rows(x, assignment, place, devices * rows)
    received = exchange.swap(sent.reshape(devices, rows, -1))
    counts = exchange.swap_numbers(sizes.reshape(devices, -1))
    expert, present = jax.vmap(lambda sizes: experts_of_runs(sizes, counts.shape[1], rows))(counts)
    there = local_rows(expert.reshape(-1), present.reshape(-1), counts.shape[1])
    outputs = run_rows(received.reshape(1, devices * rows, -1), there, weights, kind, kernel)
    returned = exchange.swap(outputs.reshape(devices, rows, -1))
    return combine_rows(returned.reshape(len(sent), -1), assignment, place)
