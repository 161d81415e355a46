"""Nothing dropped and nothing padded: devices exchange exactly the rows there are, on platforms that can.

G groups of one device, S tokens of a group, P devices on the expert axis, L experts of one, D model width,
O width of results (D, but of linear experts).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.dropless import dropless as run_rows
from moe_jax.experts.dropless import sorted_places
from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.parallel.exchange import AXIS, Exchange
from moe_jax.experts.parallel.indices import (
    experts_of_runs,
    local_rows,
    most_rows_to_one_device,
    transfers,
)
from moe_jax.experts.placement import combine_rows, dispatch_rows
from moe_jax.routing.assignment import Assignment


def ragged(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    exchange: Exchange,
    kernel: KernelChoice,
) -> Float[Array, "G S O"]:
    """Runs every kept assignment; what arrives has room for the worst case, what travels is what is there."""
    devices = exchange.devices
    place, sizes = sorted_places(assignment)
    sent = dispatch_rows(x, assignment, place, place.size)
    # [from, to, local expert]: every device knows how much any sends to any other.
    counts = exchange.collect_numbers(sizes.reshape(1, devices, -1))
    by_pair = counts.sum(axis=2)
    me = jax.lax.axis_index(AXIS)
    there, back = transfers(by_pair, me)
    most = devices * most_rows_to_one_device(assignment, devices)
    received = exchange.move(sent, jnp.zeros_like(sent, shape=(most, sent.shape[1])), there)
    expert, present = experts_of_runs(counts[:, me].reshape(-1), counts.shape[2], most)
    outputs = run_rows(received[None], local_rows(expert, present, counts.shape[2]), weights, kind, kernel)[0]
    returned = exchange.move(outputs, jnp.zeros_like(outputs, shape=(len(sent), outputs.shape[1])), back)
    return combine_rows(returned, assignment, place)
