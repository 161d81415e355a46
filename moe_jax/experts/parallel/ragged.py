"""Strategy `ragged`: nothing is dropped or padded; devices exchange exactly the rows there are, on platforms that can.

G groups of one device, S tokens of a group, P devices on the expert axis, L experts of one device, D model width, O
output width (D; F for linear experts).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.dispatch import combine_rows, dispatch_rows
from moe_jax.experts.dropless import sorted_rows
from moe_jax.experts.execution import Run
from moe_jax.experts.ffn import FFNKind, FFNParams
from moe_jax.experts.parallel.exchange import AXIS, Exchange
from moe_jax.experts.parallel.indices import experts_of_runs, local_rows, most_rows_to_one_device, transfers
from moe_jax.experts.parallel.strategy import Metrics, Strategy
from moe_jax.routing.assignment import Assignment


def ragged(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    exchange: Exchange,
    run: Run,
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Runs every kept assignment; receivers have room for the worst case, but only the rows there are travel."""
    devices = exchange.devices
    row, sizes = sorted_rows(assignment)
    sent = dispatch_rows(x, assignment, row, row.size)
    # [from, to, local expert]: every device knows how much any sends to any other.
    counts = exchange.collect_numbers(sizes.reshape(1, devices, -1))
    by_pair = counts.sum(axis=2)
    me = jax.lax.axis_index(AXIS)
    there, back = transfers(by_pair, me)
    most = devices * most_rows_to_one_device(assignment, devices)
    received = exchange.move(sent, jnp.zeros_like(sent, shape=(most, sent.shape[1])), there)
    expert, present = experts_of_runs(counts[:, me].reshape(-1), counts.shape[2], most)
    outputs = run(received[None], local_rows(expert, present, counts.shape[2]), params, kind)[0]
    returned = exchange.move(outputs, jnp.zeros_like(outputs, shape=(len(sent), outputs.shape[1])), back)
    return combine_rows(returned, assignment, row), {}


# It was compiled for GPUs, but never timed on several, so `auto` takes it on TPUs alone.
RAGGED = Strategy(ragged, "dropless", platforms=("gpu", "tpu"), preferred_on=("tpu",))
