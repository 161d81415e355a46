"""Where rows go when devices exchange them: index arithmetic, without communication.

G groups of one device, A assignments of a group, E experts of all devices, L experts of one, P devices on the expert
axis (E = P * L), R rows that a device may send to another.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.experts.dropless import sorted_places
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment


class Transfer(NamedTuple):
    """Runs of rows between one device and each of the others, as `jax.lax.ragged_all_to_all` takes them.

    Attributes:
      starts: where the run for each device starts here.
      sent: how long it is.
      starts_there: where it is to start with its receiver.
      received: how long the run is that each device has for this one.
    """

    starts: Int[Array, " P"]
    sent: Int[Array, " P"]
    starts_there: Int[Array, " P"]
    received: Int[Array, " P"]


def most_rows_to_one_device(assignment: Assignment, devices: int) -> int:
    """The largest number of rows that one device can have for another: R of buffers that nothing overflows."""
    seats = assignment.num_experts // devices * assignment.capacity
    return assignment.num_groups * min(assignment.token.shape[1], seats)


def bounded_rows(assignment: Assignment, devices: int, slack: float) -> int:
    """R with room for `slack` times an even load, at most what can come."""
    even = assignment.num_groups * assignment.token.shape[1] / devices
    return min(max(1, math.ceil(slack * even)), most_rows_to_one_device(assignment, devices))


def rows_by_device(sizes: Int[Array, " E"], devices: int) -> Int[Array, " P"]:
    """How many rows go to each device, from how many go to each expert."""
    return sizes.reshape(devices, -1).sum(axis=1)


def starts(sizes: Int[Array, " N"]) -> Int[Array, " N"]:
    """Where each of consecutive runs of `sizes` starts."""
    return jnp.cumsum(sizes) - sizes


def buffer_places(assignment: Assignment, devices: int, rows: int) -> tuple[Int[Array, "G A"], Int[Array, " E"]]:
    """Row of each kept assignment in buffers [P, R] of rows sorted by expert, and how many rows each expert has.

    NOWHERE for what is not kept, and for what a buffer of R = `rows` has no room for.
    """
    place, sizes = sorted_places(assignment)
    device = assignment.expert // (assignment.num_experts // devices)
    within = place - starts(rows_by_device(sizes, devices))[device]
    fits = (place != NOWHERE) & (within < rows)
    return jnp.where(fits, device * rows + within, NOWHERE), sizes


def experts_of_runs(sizes: Int[Array, " N"], num_experts: int, rows: int) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """Local expert of each of R = `rows` rows, and whether it is a row at all.

    Args:
      sizes: of consecutive runs of rows, one for each of L = `num_experts` experts, again and again.
      num_experts: L.
      rows: R.
    """
    run = jnp.arange(sizes.shape[0], dtype=jnp.int32)
    expert = jnp.repeat(run % num_experts, sizes, total_repeat_length=rows)
    return expert, jnp.arange(rows, dtype=jnp.int32) < sizes.sum()


def transfers(rows: Int[Array, "P P"], device: Int[Array, ""]) -> tuple[Transfer, Transfer]:
    """What `device` sends and receives so that rows in order of device arrive in order of device, and the way back.

    Args:
      rows: how many each device (first axis) has for each.
      device: this one.
    """
    sent, received = rows[device], rows[:, device]
    # Where my rows start at each receiver, and where each sender's rows for me start with it.
    at_receivers = jnp.cumsum(rows, axis=0) - rows
    at_senders = jnp.cumsum(rows, axis=1) - rows
    there = Transfer(starts(sent), sent, at_receivers[device], received)
    back = Transfer(starts(received), received, at_senders[:, device], sent)
    return there, back


def local_rows(expert: Int[Array, " M"], present: Bool[Array, " M"], num_experts: int) -> Assignment:
    """Rows already on the device of their experts, as tokens of one group with a choice of weight 1."""
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
    """The assignments to the experts of one device, under those experts' local numbers."""
    count = assignment.num_experts // devices
    expert = assignment.expert - device * count
    mine = (expert >= 0) & (expert < count)
    return assignment.replace(
        expert=jnp.where(mine, expert, 0), requested=assignment.requested & mine, num_experts=count
    )
