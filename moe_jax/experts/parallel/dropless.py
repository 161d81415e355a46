"""Strategy `dropless`: nothing is dropped; bounded buffers between devices, and longer ones when those overflow.

G groups of one device, S tokens of a group, P devices on the expert axis, L experts of one device, R rows of a buffer,
D model width, O output width (D; F for linear experts).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.dispatch import combine_rows, dispatch_rows
from moe_jax.experts.dropless import sorted_rows
from moe_jax.experts.execution import Run
from moe_jax.experts.ffn import FFNKind, FFNParams
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.experts.parallel.indices import (
    bounded_rows,
    buffer_rows,
    experts_of_runs,
    local_rows,
    most_rows_to_one_device,
    rows_by_device,
)
from moe_jax.experts.parallel.strategy import Metrics, Strategy
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import TOKEN_AXES


def dropless(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    exchange: Exchange,
    run: Run,
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Runs every kept assignment.

    Buffers hold `exchange.slack` times an even load. In a step in which any device has more rows than that for any
    other, all devices take buffers for the worst case, and the metric `buffers_overflowed` is 1.
    """
    devices = exchange.devices
    short, longest = bounded_rows(assignment, devices, exchange.slack), most_rows_to_one_device(assignment, devices)

    def through(rows: int, *values: Any) -> Float[Array, "G S O"]:
        return _through_buffers(*values, kind, exchange, run, rows)

    if short == longest:
        return through(longest, x, assignment, params), {"buffers_overflowed": jnp.float32(0.0)}
    _, sizes = sorted_rows(assignment)
    overflowed = jax.lax.pmax(rows_by_device(sizes, devices).max(), TOKEN_AXES) > short
    branches = functools.partial(through, longest), functools.partial(through, short)
    y = jax.lax.cond(overflowed, *branches, x, assignment, params)
    return y, {"buffers_overflowed": overflowed.astype(jnp.float32)}


def _through_buffers(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    exchange: Exchange,
    run: Run,
    rows: int,
) -> Float[Array, "G S O"]:
    """Runs the kept assignments by buffers of R = `rows` rows from each device to each other."""
    devices = exchange.devices
    row, sizes = buffer_rows(assignment, devices, rows)
    sent = dispatch_rows(x, assignment, row, devices * rows)
    received = exchange.swap(sent.reshape(devices, rows, -1))
    counts = exchange.swap_numbers(sizes.reshape(devices, -1))
    expert, present = jax.vmap(lambda sizes: experts_of_runs(sizes, counts.shape[1], rows))(counts)
    there = local_rows(expert.reshape(-1), present.reshape(-1), counts.shape[1])
    outputs = run(received.reshape(1, devices * rows, -1), there, params, kind)
    returned = exchange.swap(outputs.reshape(devices, rows, -1))
    return combine_rows(returned.reshape(len(sent), -1), assignment, row)


DROPLESS = Strategy(dropless, "dropless", preferred_on=("cpu", "gpu", "tpu"))
