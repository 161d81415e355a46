"""Index arithmetic of exchanges between devices, without communication.

G groups of one device, A assignments of a group, E experts of all devices, L experts of one device, P devices on the
expert axis (E = P * L), R rows that a device may send to another.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.experts.dropless import sorted_rows
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment


class Transfer(NamedTuple):
    """Runs of rows between one device and each of the others, as `jax.lax.ragged_all_to_all` takes them.

    Attributes:
      starts: first row, on this device, of the run for each device.
      sent: rows of the run for each device.
      starts_there: first row, on its receiver, of the run for each device.
      received: rows of the run from each device.
    """

    starts: Int[Array, " P"]
    sent: Int[Array, " P"]
    starts_there: Int[Array, " P"]
    received: Int[Array, " P"]


def most_rows_to_one_device(assignment: Assignment, devices: int) -> int:
    """Computes the most rows that one device can have for another: R of buffers that never overflow."""
    seats = assignment.num_experts // devices * assignment.capacity
    return assignment.num_groups * min(assignment.token.shape[1], seats)


def bounded_rows(assignment: Assignment, devices: int, slack: float) -> int:
    """Computes the R that has room for `slack` times an even load; no more than can come."""
    even = assignment.num_groups * assignment.token.shape[1] / devices
    return min(max(1, math.ceil(slack * even)), most_rows_to_one_device(assignment, devices))


def rows_by_device(sizes: Int[Array, " E"], devices: int) -> Int[Array, " P"]:
    """Counts the rows that go to each device, from the rows that go to each expert."""
    return sizes.reshape(devices, -1).sum(axis=1)


def starts(sizes: Int[Array, " N"]) -> Int[Array, " N"]:
    """Computes the start of each of consecutive runs of `sizes`."""
    return jnp.cumsum(sizes) - sizes


def buffer_rows(assignment: Assignment, devices: int, rows: int) -> tuple[Int[Array, "G A"], Int[Array, " E"]]:
    """Sorts the kept assignments by expert into buffers [P, R], one for each device.

    Returns:
      The row of each assignment among the P * R, NOWHERE if it is not kept or its buffer of R = `rows` has no room; and
      the number of kept assignments of each expert.
    """
    row, sizes = sorted_rows(assignment)
    device = assignment.expert // (assignment.num_experts // devices)
    within = row - starts(rows_by_device(sizes, devices))[device]
    fits = (row != NOWHERE) & (within < rows)
    return jnp.where(fits, device * rows + within, NOWHERE), sizes


def experts_of_runs(sizes: Int[Array, " N"], num_experts: int, rows: int) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """Finds the expert of each of R = `rows` rows that have arrived in consecutive runs.

    Args:
      sizes: rows of each run. Runs are of experts 0 to L - 1, then again of experts 0 to L - 1, and so on.
      num_experts: L.
      rows: R.

    Returns:
      The local number of each row's expert, and whether there is such a row.
    """
    run = jnp.arange(sizes.shape[0], dtype=jnp.int32)
    expert = jnp.repeat(run % num_experts, sizes, total_repeat_length=rows)
    return expert, jnp.arange(rows, dtype=jnp.int32) < sizes.sum()


def transfers(rows: Int[Array, "P P"], device: Int[Array, ""]) -> tuple[Transfer, Transfer]:
    """Plans the exchange in which rows, sorted by receiver, arrive sorted by sender.

    Args:
      rows: number of rows that each device (first axis) has for each other.
      device: the device that asks.

    Returns:
      The transfer of `device`, and its transfer on the way back.
    """
    sent, received = rows[device], rows[:, device]
    # The start of my rows on each receiver, and of each sender's rows for me on the sender.
    at_receivers = jnp.cumsum(rows, axis=0) - rows
    at_senders = jnp.cumsum(rows, axis=1) - rows
    there = Transfer(starts(sent), sent, at_receivers[device], received)
    back = Transfer(starts(received), received, at_senders[:, device], sent)
    return there, back


def local_rows(expert: Int[Array, " M"], present: Bool[Array, " M"], num_experts: int) -> Assignment:
    """Assigns rows that are on the device of their experts: tokens of one group, each with one choice of weight 1."""
    count = expert.shape[0]
    return Assignment(
        token=jnp.arange(count, dtype=jnp.int32)[None],
        expert=expert[None],
        weight=jnp.ones((1, count), jnp.float32),
        requested=present[None],
        seat=jnp.zeros((1, count), jnp.int32),
        capacity=1,
        num_tokens=count,
        num_experts=num_experts,
        choices=1,
    )


def local_part(assignment: Assignment, device: Int[Array, ""], devices: int) -> Assignment:
    """Selects the assignments to the experts of one device, and renumbers these experts from 0."""
    count = assignment.num_experts // devices
    expert = assignment.expert - device * count
    mine = (expert >= 0) & (expert < count)
    return assignment.replace(
        expert=jnp.where(mine, expert, 0), requested=assignment.requested & mine, num_experts=count
    )
